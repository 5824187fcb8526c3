"""David's call: the loaded model itself runs the plan, in place, until it is undone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from restack.errors import PlanError, ViewError
from restack import plans
from restack.plans import Plan
from restack.views import configuration
from restack.views.anatomy import anatomy, decoder_config
from restack.views.build import runnable, sharing_memo, visits

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What a model runs: its layer list, what its config says of it, and the plan it came from."""

    path: str
    layers: nn.ModuleList
    config: configuration.Change
    plan: Plan | None


def sling(
    model: Model,
    ratio_repeat: Sequence[tuple[float, float]] | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    *,
    plan: Any = None,
) -> Model:
    """Make `model` itself run a plan, until `unsling(model)`. The call of EGjoni/David.

    A second sling counts the model's original layers, not those of the first. Exactly one of the three is given:

    Args:
        model: a loaded decoder of transformers; changed in place, and returned.
        ratio_repeat: depth ranges (start, end), where 0 is the first layer and 1 the last; gaps are filled.
        repeat_map_raw: layer numbers, as they stand.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError: not exactly one of the three is given, or it is no plan for this model's layers.
        ViewError: the model's layers cannot be arranged this way. Either way the model is as it was.
    """
    if sum(given is not None for given in (ratio_repeat, repeat_map_raw, plan)) != 1:
        raise PlanError("sling takes one of ratio_repeat, repeat_map_raw and plan; give exactly one")
    original = _original(model)
    slung = None if original is None else arrange(model, original)
    try:
        new = _arrangement(model, plan if plan is not None else repeat_map_raw, ratio_repeat)
    except BaseException:
        if slung is not None:
            arrange(model, slung)
        raise
    before = arrange(model, new)
    vars(model)["_restack_original"] = original or before
    return model


def unsling(model: Model) -> Model:
    """Undo `sling`: the model runs its original layers again, the very same objects.

    Raises:
        ViewError: the model is not slung.
    """
    original = _original(model)
    if original is None:
        raise ViewError("this model is not slung; there is nothing to undo")
    arrange(model, original)
    del vars(model)["_restack_original"]
    return model


@contextmanager
def slung(model: Model, plan: Any) -> Iterator[Model]:
    """`with slung(model, plan):` runs the plan inside the block; afterwards the model runs what it ran before."""
    original = _original(model)
    before = None if original is None else _arrangement_now(model, original)
    sling(model, plan=plan)
    try:
        yield model
    finally:
        if _original(model) is not None:
            unsling(model)
        if before is not None:
            arrange(model, before)
            vars(model)["_restack_original"] = original


def arrange(model: nn.Module, arrangement: Arrangement) -> Arrangement:
    """Put an arrangement into effect; returns the one it replaces."""
    before = _arrangement_now(model, arrangement)
    arrangement.config.apply(decoder_config(model))
    parent, _, name = arrangement.path.rpartition(".")
    setattr(model.get_submodule(parent), name, arrangement.layers)
    vars(model).pop("restack_plan", None)
    if arrangement.plan is not None:
        vars(model)["restack_plan"] = arrangement.plan
    return before


def _arrangement(
    model: nn.Module, plan: Any, ratio_repeat: Sequence[tuple[float, float]] | None
) -> Arrangement:
    parts = anatomy(model)
    plan = runnable(plans.plan(plan, len(parts.layers), ratio_repeat=ratio_repeat))
    memo = sharing_memo(model) | {id(config): config for config in (model.config, parts.config)}
    layers = nn.ModuleList(visits(parts, plan, memo))
    layers.training = parts.layers.training
    base_plan = getattr(model, "restack_plan", None)
    return Arrangement(
        parts.path,
        layers,
        configuration.change(parts.config, plan.order),
        plan if base_plan is None else base_plan.then(plan),
    )


def _arrangement_now(model: nn.Module, other: Arrangement) -> Arrangement:
    layers = model.get_submodule(other.path)
    assert isinstance(layers, nn.ModuleList)
    config = other.config.inverse(decoder_config(model))
    return Arrangement(other.path, layers, config, getattr(model, "restack_plan", None))


def _original(model: nn.Module) -> Arrangement | None:
    return vars(model).get("_restack_original")
