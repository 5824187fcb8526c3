"""Text from a model or a view of one."""

from restack.runtime.generation import (
    ContextFull,
    Sampling,
    check_room,
    context_length,
    generate,
    generate_all,
)

__all__ = ["ContextFull", "Sampling", "check_room", "context_length", "generate", "generate_all"]
