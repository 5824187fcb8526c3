"""Models by name: MODEL[@SPEC] to a loaded model or a view of it, for every command and every program."""

from restack.recipes.opening import DTYPES, open, open_config, open_empty, open_tokenizer
from restack.recipes.reference import Reference, check_location, parse_reference

__all__ = [
    "DTYPES",
    "Reference",
    "check_location",
    "open",
    "open_config",
    "open_empty",
    "open_tokenizer",
    "parse_reference",
]
