"""The trained model, written into a folder as what `restack.open`, and mostly transformers too, can open."""

from pathlib import Path
from typing import Any

import torch

from restack import recipes
from restack.errors import ModelError
from restack.training.adapters import has_adapters


def save_trained(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model that was trained.

    Args:
        model: with adapters (saved as a recipe and the adapters beside it; with the weights too where a
            recipe cannot name them), a view (a recipe with each layer's weights once), or neither (a
            checkpoint).
        tokenizer: goes with the weights; None if there is none.
        folder: not there yet.
    """
    from restack.recipes.saving import BASE
    from restack.views.guards import PLAN

    if has_adapters(model):
        try:
            recipes.save(model, folder)
            return
        except ModelError:  # made in memory, or not as its files are
            recipes.save(model, folder, weights="shared")
    elif PLAN in vars(model):
        recipes.save(model, folder, weights="shared")
    else:
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / BASE if (folder / BASE).is_dir() else folder)


def with_weights(model: Any, state: dict[str, torch.Tensor]) -> Any:
    """The model with these weights: those of a sharded model, gathered, in a copy that is whole.

    Raises:
        ModelError: a weight is not among them.
    """
    missing, _ = model.load_state_dict(state, strict=False)
    names = {name for name, _ in model.named_parameters()}  # without the second names of tied weights
    if lost := sorted(names.intersection(missing)):
        raise ModelError(f"the processes hold no {lost[0]} together; the model cannot be saved")
    return model
