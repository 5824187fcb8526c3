"""Models by name: MODEL[@SPEC] or a recipe to a loaded model or a view; and back, a view to a recipe."""

from restack.recipes.import_hook import teach_transformers
from restack.recipes.merges import Merge
from restack.recipes.new_folder import check_new_folder
from restack.recipes.opening import (
    DTYPES,
    device_named,
    dtype_named,
    find_reference,
    open,
    open_config,
    open_empty,
    open_tokenizer,
)
from restack.recipes.reference import Reference, check_location, parse_reference
from restack.recipes.saving import WEIGHTS, save, save_recipe

__all__ = [
    "DTYPES",
    "WEIGHTS",
    "Merge",
    "Reference",
    "check_location",
    "check_new_folder",
    "device_named",
    "dtype_named",
    "find_reference",
    "open",
    "open_config",
    "open_empty",
    "open_tokenizer",
    "parse_reference",
    "save",
    "save_recipe",
    "teach_transformers",
]
