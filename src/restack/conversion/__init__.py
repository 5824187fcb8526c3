"""Models made from a plan that no longer share weights with their base."""

from restack.conversion.merge import materialise

__all__ = ["materialise"]
