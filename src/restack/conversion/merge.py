"""A plan turned into a model of its own: what a self-merge tool would write to disk."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from restack.views.anatomy import anatomy
from restack.views.build import PLAN, arranged_copy
from restack.views.frozen_config import UNSAVED, freezing

Model = TypeVar("Model", bound=nn.Module)
# Attributes that say how a module is used now, not what it is.
PASSING = ("training", "gradient_checkpointing")


def materialise(model: Model, plan: Any) -> Model:
    """A model that runs `plan` on its own copies of the weights: one copy a visit, none shared.

    It can be trained, changed and saved (`save_pretrained`) like any model, and takes the memory of all its
    visits. Some architectures make a layer by a rule from its number or the depth ("every second layer has
    experts"): a model whose layers are not those its config makes runs, but cannot be saved.

    Args:
        model: a loaded decoder of transformers; it is not changed.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError, ViewError: as `restack.view` does.
    """
    result = arranged_copy(model, plan, share_tensors=False)
    del vars(result)[PLAN]
    _refuse_saving_of_another_model(result)
    return result


def _refuse_saving_of_another_model(model: nn.Module) -> None:
    """Mark the config if a model built by it has other layers than this one: loading would build that one."""
    config: Any = model.config
    vars(config).pop(UNSAVED, None)
    if getattr(config, "quantization_config", None) is not None:  # its layers are replaced when it is loaded
        return
    difference = _difference(model)
    if difference is not None:
        config_class: type = type(config)
        config.__class__ = freezing(config_class)
        vars(config)[UNSAVED] = (
            f"a {type(model).__name__} loaded by its config would not be this model: {difference}"
        )


def _difference(model: nn.Module) -> str | None:
    parts = anatomy(model)
    try:
        with torch.device("meta"):
            loaded = type(model)(copy.deepcopy(model.config)).get_submodule(parts.path)
    except Exception as error:
        return f"it cannot be built ({type(error).__name__})"
    theirs = _facts(loaded)
    ours = _facts(parts.layers)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            told = [f"{facts[name]}" if name in facts else "none" for facts in (ours, theirs)]
            return f"{parts.path}.{name} is {told[0]} here and would be {told[1]}"
    return None


def _facts(layers: nn.Module) -> dict[str, Any]:
    """What the layers are: the shape of each tensor, and the numbers that their modules hold."""
    tensors = [*layers.named_parameters(), *layers.named_buffers()]
    facts: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors}
    for path, module in layers.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float) and not name.startswith("_") and name not in PASSING:
                facts[f"{path}.{name}"] = value
    return facts
