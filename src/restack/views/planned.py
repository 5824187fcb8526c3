"""Models that run a plan by themselves, as restack-llama does: it is in their config.

Their layers are stored once. A view is another plan over the same layers. Only where visits of a layer differ
in their weights, or each is to have its own, is there one layer object a visit.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from restack.errors import ViewError
from restack.plans import Plan, own_plan
from restack.views import scaling
from restack.views.anatomy import anatomy, copied_layer
from restack.views.bound import copied


def runs_plans(model: Any) -> bool:
    """Whether a model runs a plan by itself."""
    return own_plan(getattr(model, "config", None)) is not None


def visit_count(model: Any) -> int:
    """How many layers a plan over the model has to count with: its visits, if it runs a plan by itself."""
    return len(model.config.whole_plan) if runs_plans(model) else len(anatomy(model).layers)


def iterated(model: Any) -> frozenset[int]:
    """The visits of a restack-llama that are iterated with one before them: what enters is not final."""
    if not runs_plans(model):
        return frozenset()
    groups = (group for group in model.config.schedule.groups if group.is_iterated)
    return frozenset(step.number for group in groups for step in group.steps[1:])


def set_plan(model: Any, plan: Plan) -> None:
    """Have a model run a plan over its visits.

    Raises:
        ViewError: the plan scales tensors, which all visits of a layer share; or it needs keys and values
            that no weights make.
    """
    if any(visit.scale for visit in plan.visits):
        raise ViewError("visits of this model share their tensors; make a view that scales, not in place")
    model.run(model.config.whole_plan.then(plan))


def unrolled(model: Any, plan: Plan, memo: dict[Any, Any]) -> Any:
    """A copy of the model with one layer object for each visit of a plan over its visits.

    Args:
        model: that runs plans.
        plan: over its visits.
        memo: of `copy.deepcopy`: what is in it is shared.
    """
    parts = anatomy(model)
    whole = model.config.whole_plan.then(plan)
    scaling.check(whole, parts.layers, parts.path)
    memo[id(parts.layers)] = layers = nn.ModuleList()
    result = copied(model, memo)
    common = {id(copied) for copied in memo.values()}
    for visit in whole.visits:
        layer = copied_layer(parts.layers[visit.layer], memo)
        scaling.scale(layer, visit.scale, parts.path, common)
        layers.append(layer)
    visits = (replace(visit, layer=number, scale=()) for number, visit in enumerate(whole.visits))
    result.config.num_hidden_layers = len(whole)
    result.run(Plan(tuple(visits), (len(whole),)))
    return result
