"""What two models have in common: the first visits, if both make them alike on the same tensors."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from restack.errors import ViewError
from restack.views.anatomy import Anatomy, anatomy
from restack.views.arranging import outside
from restack.views.damping import Damping
from restack.views.guards import PASSING
from restack.views.planned import iterated, runs_plans
from restack.views.shared_kv import Role


def leading_visits(one: nn.Module, other: nn.Module) -> int:
    """How many of their first visits two models make alike: on the same tensors, and in the same way.

    So many slots of their KV caches hold the same after the same tokens. Views of one base, views of those,
    the base itself and slung models have visits in common, if their plans begin alike; models that only hold
    equal numbers have none. A visit whose keys and values another reads in one of the two alone is not alike:
    it may compute or keep something else. Nor are some alone of the visits that a restack-llama iterates
    together. Takes milliseconds.

    Args:
        one, other: loaded models of transformers.

    Returns:
        From 0, as for models that have nothing to do with each other, to the visits of the shorter one.
    """
    try:
        ours, theirs = anatomy(one), anatomy(other)
    except ViewError:  # no view can have been made of it
        return 0
    if runs_plans(one) != runs_plans(other) or not _are_same(_entrance(one, ours), _entrance(other, theirs)):
        return 0
    count = 0
    pairs = zip(_visits(one, ours), _visits(other, theirs), strict=False)
    for (layer, how), (their_layer, their_how) in pairs:
        if how != their_how or not _computes_the_same(layer, their_layer):
            break
        count += 1
    while count in iterated(one):
        count -= 1
    return count


def _entrance(model: Any, parts: Anatomy) -> list[torch.Tensor]:
    """The tensors that make what enters the first visit, and the buffers that all visits depend on."""
    found = _tensors(model.get_input_embeddings())
    for child in model.get_submodule(parts.path.rpartition(".")[0]).children():
        if child is parts.layers:
            break
        found += _tensors(child)
    for module in outside(parts.decoder, parts.layers):  # the frequencies of rotary embeddings, mostly
        found += [buffer for buffer in module._buffers.values() if buffer is not None]
    return found


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _are_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))


def _visits(model: Any, parts: Anatomy) -> Iterator[tuple[nn.Module, Hashable]]:
    """Of each visit: the layer, and what the layer object does not say of how it is run and cached."""
    if runs_plans(model):
        _, _, *settings = model.config.structure  # the plan and the depth left out
        schedule = model.config.schedule
        for step in schedule.steps:
            keeps = None if step.slot is None else schedule.slots[step.slot]
            how = (step.owner, step.damp, step.reading.sliding, keeps, *settings)
            yield parts.layers[step.layer], how
        return
    kinds = getattr(parts.config, "layer_types", None)
    for number, layer in enumerate(parts.layers):
        yield layer, kinds[number] if kinds else None


def _computes_the_same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layer objects are of the same classes, tensors and settings throughout."""
    if one is other:
        return True
    ours, theirs = list(one.named_modules()), list(other.named_modules())
    return len(ours) == len(theirs) and all(
        path == their_path
        and type(module) is type(their_module)
        and _is_same_state(module._parameters, their_module._parameters)
        and _is_same_state(module._buffers, their_module._buffers)
        and _settings(module) == _settings(their_module)
        for (path, module), (their_path, their_module) in zip(ours, theirs, strict=True)
    )


def _is_same_state(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(theirs[name] is tensor for name, tensor in ours.items())


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module says of itself in numbers and words, its alterations included."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, Role):
            found[name] = value.sharing.owners[value.visit], value.visit in value.sharing.lenders
        elif not name.startswith("_") and name not in PASSING and _is_plain(value):
            found[name] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Damping)
