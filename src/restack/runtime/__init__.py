"""Text from a model or a view of one."""

from restack.runtime.generation import (
    ContextFull,
    Sampling,
    check_room,
    context_length,
    generate,
    generate_all,
)
from restack.runtime.likelihood import Perplexity, perplexity, sample_text

__all__ = [
    "ContextFull",
    "Perplexity",
    "Sampling",
    "check_room",
    "context_length",
    "generate",
    "generate_all",
    "perplexity",
    "sample_text",
]
