"""Text from a model or a view of one."""

from restack.runtime.generation import Sampling, generate

__all__ = ["Sampling", "generate"]
