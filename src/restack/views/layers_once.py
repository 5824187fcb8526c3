"""A view taken apart: a model that has each layer it visits once, and the plan over it."""

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from restack.plans import Plan
from restack.views.anatomy import anatomy
from restack.views.arranging import arranged_copy
from restack.views.frozen_config import UNSAVED
from restack.views.guards import PLAN
from restack.views.planned import runs_plans, visit_count


def layers_once(model: nn.Module, plan: Plan) -> tuple[Any, Plan]:
    """The model of the layers that a view visits, each once, in their own order, over the view's tensors.

    What visits are damped or scaled by, and whose keys and values they read, is in the plan alone.

    Args:
        model: a view, or a model that is no view.
        plan: the plan that it runs, over its base or bases.

    Returns:
        The model, and the plan that makes the view of it again. Layers that no visit runs are in neither.
    """
    if runs_plans(model):  # its layers are stored once, and its config says how they are visited
        bare = copy.copy(model)
        vars(bare).pop(PLAN, None)
        return bare, Plan.of(range(visit_count(model)), visit_count(model))
    parts = anatomy(model)
    layers = parts.layers
    kept = sorted({(visit.donor, visit.layer) for visit in plan.visits})
    # A visit that reads the keys and values of another may lack the weights that make its own.
    fullest: dict[tuple[int, int], int] = {}
    for number, visit in enumerate(plan.visits):
        place = visit.donor, visit.layer
        if place not in fullest or _size(layers[number]) > _size(layers[fullest[place]]):
            fullest[place] = number
    order = Plan.of([fullest[place] for place in kept], len(plan))
    bare = copy.copy(model)
    vars(bare).pop(PLAN, None)  # an order of visits alone need not keep owners below their readers
    # Embeddings for each layer, all in one tensor, are cut to the layers that are kept: not that of the base.
    is_cut = bool(getattr(parts.config, "hidden_size_per_layer_input", None))
    once: Any = arranged_copy(bare, order, share_tensors=not is_cut)
    vars(once).pop(PLAN, None)
    vars(once.config).pop(UNSAVED, None)
    number_of = {place: number for number, place in enumerate(kept)}
    visits = (replace(visit, layer=number_of[visit.donor, visit.layer], donor=0) for visit in plan.visits)
    return once, Plan(tuple(visits), (len(kept),))


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
