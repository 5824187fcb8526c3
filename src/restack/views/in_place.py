"""David's call: the loaded model itself runs the plan, in place, until it is undone."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn

from restack import plans
from restack.errors import PlanError, ViewError
from restack.plans import Plan
from restack.plans.pointing import shown
from restack.views import sliding
from restack.views.anatomy import anatomy, decoder_config
from restack.views.arranging import (
    ORIGINAL,
    Preparation,
    outside,
    refuse_saving,
    sharing_memo,
    unsaved_reason,
    visits,
)
from restack.views.bound import refuse_bound_functions
from restack.views.by_place import ByPlace
from restack.views.configuration import LayerSettings
from restack.views.frozen_config import UNSAVED
from restack.views.guards import PLAN
from restack.views.planned import runs_plans, set_plan, visit_count

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What a model runs: the members of its layer list, what its config says of them, and their plan."""

    layers: nn.ModuleList
    members: tuple[nn.Module, ...]
    training: bool
    settings: LayerSettings
    by_place: ByPlace
    plan: Plan | None

    @classmethod
    def of(cls, model: Any, layers: nn.ModuleList) -> "Arrangement | PlannedArrangement":
        """What `model` runs now."""
        if runs_plans(model):
            return PlannedArrangement(layers, model.config.whole_plan, vars(model).get(PLAN))
        settings = LayerSettings.of(decoder_config(model))
        by_place = ByPlace.of(outside(model, layers))
        return cls(layers, tuple(layers), layers.training, settings, by_place, vars(model).get(PLAN))

    def apply(self, model: nn.Module) -> None:
        """Make `model` run this."""
        vars(model.config).pop(UNSAVED, None)
        self.settings.apply(decoder_config(model))
        self.by_place.apply(outside(model, self.layers))
        del self.layers[:]
        self.layers.extend(self.members)
        if self.layers.training != self.training:  # model.train() or eval() was called in the meantime
            self.layers.train(self.layers.training)
        vars(model).pop(PLAN, None)
        if self.plan is not None:
            vars(model)[PLAN] = self.plan
            if reason := unsaved_reason(self.plan):
                refuse_saving(model.config, reason)


@dataclass(frozen=True, slots=True)
class PlannedArrangement:
    """The same of a model that runs plans by itself."""

    layers: nn.ModuleList
    whole: Plan  # that its config says
    plan: Plan | None

    def apply(self, model: Any) -> None:
        """Make `model` run this."""
        model.run(self.whole)
        vars(model).pop(PLAN, None)
        if self.plan is not None:
            vars(model)[PLAN] = self.plan


def sling(
    model: Model,
    ratio_repeat: Sequence[tuple[float, float]] | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    *,
    plan: Any = None,
) -> Model:
    """Make `model` itself run a plan, until `unsling(model)`. The call of EGjoni/David.

    A second sling counts the model's original layers, not those of the first. Move a model to its device and
    dtype before it is slung: layers that the plan leaves out are not reached by `model.to`.

    Args:
        model: a loaded decoder of transformers; changed in place, and returned.
        ratio_repeat: depth ranges (start, end), where 0 is the first layer and 1 the last; gaps are filled.
        repeat_map_raw: layer numbers, as they stand.
        plan: anything that `restack.plan` reads. Exactly one of the three is given.

    Raises:
        PlanError: not exactly one of the three is given, or it is no plan for this model's layers.
        ViewError: the model's layers cannot be arranged this way. Either way the model is as it was.
    """
    if sum(given is not None for given in (ratio_repeat, repeat_map_raw, plan)) != 1:
        raise PlanError("sling takes one of ratio_repeat, repeat_map_raw and plan; give exactly one")
    _refuse_other_notation(ratio_repeat)
    if isinstance(repeat_map_raw, tuple):
        repeat_map_raw = list(repeat_map_raw)  # a pair would be a block
    if repeat_map_raw is not None:
        plan = repeat_map_raw
    before = Arrangement.of(model, anatomy(model).layers)
    original = _original(model) or before
    original.apply(model)
    try:
        new = _arrangement(model, plan, ratio_repeat)
    except BaseException:
        before.apply(model)
        raise
    new.apply(model)
    vars(model)[ORIGINAL] = original
    return model


def unsling(model: Model) -> Model:
    """Undo `sling`: the model runs its original layers again, the very same objects.

    Raises:
        ViewError: the model is not slung.
    """
    original = _original(model)
    if original is None:
        raise ViewError("this model is not slung; there is nothing to undo")
    original.apply(model)
    del vars(model)[ORIGINAL]
    return model


@contextmanager
def slung(model: Model, plan: Any) -> Iterator[Model]:
    """`with slung(model, plan):` runs the plan inside the block; then the model runs what it ran before."""
    original = _original(model)
    before = None if original is None else Arrangement.of(model, original.layers)
    sling(model, plan=plan)
    try:
        yield model
    finally:
        if _original(model) is not None:
            unsling(model)
        if before is not None:
            before.apply(model)
            vars(model)[ORIGINAL] = original


def _arrangement(
    model: nn.Module, plan: Any, ratio_repeat: Sequence[tuple[float, float]] | None
) -> Arrangement | PlannedArrangement:
    if runs_plans(model):
        over_visits = plans.plan(plan, visit_count(model), ratio_repeat=ratio_repeat)
        set_plan(model, over_visits)
        return PlannedArrangement(anatomy(model).layers, cast(Any, model).config.whole_plan, over_visits)
    ready = Preparation.of(model, plan, ratio_repeat=ratio_repeat)
    parts = ready.parts
    if sliding.SLIDING in ready.kinds and any(
        vars(module).get("has_sliding_layers") is False for module in model.modules()
    ):
        raise ViewError("this model was built without sliding layers; make a view that slides, it is a copy")
    refuse_bound_functions(parts.layers.named_modules(prefix=parts.path))
    kept = [model.config, parts.config, parts.layers, *outside(model, parts.layers)]
    memo = sharing_memo(model) | {id(thing): thing for thing in kept}
    members = tuple(visits(ready, memo))
    after = copy.copy(parts.config)
    ready.settings.apply(after)
    by_place = ByPlace.of(ready.around).reordered(after, ready.plan.order, ready.depth)
    return Arrangement(parts.layers, members, parts.layers.training, ready.settings, by_place, ready.whole)


def _refuse_other_notation(ratio_repeat: Any) -> None:
    """Depth ranges come first, as David has them; whoever gives another notation there is told its name."""
    if isinstance(ratio_repeat, str | Plan):
        name = "plan"
    elif isinstance(ratio_repeat, Sequence) and any(isinstance(entry, int) for entry in ratio_repeat):
        name = "repeat_map_raw"
    else:
        return
    raise PlanError(
        f"{shown(ratio_repeat)} is no list of depth ranges, which sling takes first; write {name}="
        f"{shown(ratio_repeat)}"
    )


def _original(model: nn.Module) -> Arrangement | PlannedArrangement | None:
    return vars(model).get(ORIGINAL) if isinstance(model, nn.Module) else None
