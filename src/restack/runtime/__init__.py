"""Text from a model or a view of one."""

from restack.runtime.decoding import Drafter
from restack.runtime.generation import (
    ContextFull,
    Generated,
    Sampling,
    check_room,
    context_length,
    generate,
    generate_all,
)
from restack.runtime.likelihood import Perplexity, option_log_probabilities, perplexity, sample_text
from restack.runtime.prompt_cache import PromptCache

__all__ = [
    "ContextFull",
    "Drafter",
    "Generated",
    "Perplexity",
    "PromptCache",
    "Sampling",
    "check_room",
    "context_length",
    "generate",
    "generate_all",
    "option_log_probabilities",
    "perplexity",
    "sample_text",
]
