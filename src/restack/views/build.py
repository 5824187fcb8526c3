"""A plan over a loaded model: a new model object that runs the plan on the base's own weights."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from restack.errors import ViewError
from restack import plans
from restack.views import configuration
from restack.views.anatomy import Anatomy, anatomy

Model = TypeVar("Model", bound=nn.Module)
Memo = dict[int, Any]


def view(model: Model, plan: Any) -> Model:
    """A new model of the same class that runs `plan` on weights it shares with `model`.

    Every parameter and buffer of the view *is* the base's; the config, the layer list and every module object
    are the view's own, so any number of views can be used at once, in any number of threads. Each visit has its
    own slot in the KV cache. Costs about a millisecond and 50 kB a visit.

    Args:
        model: a loaded decoder of transformers; it is not changed.
        plan: a `Plan`, or any notation that `restack.plan` reads: `"0:8,4:12"`, `[0, 1, 1, 2]`...

    Raises:
        PlanError: the plan is not one for this model's layers.
        ViewError: the model's layers, or what the plan asks of them, cannot be arranged this way.
    """
    parts = anatomy(model)
    plan = runnable(plans.plan(plan, len(parts.layers)))
    change = configuration.change(parts.config, plan.order)
    memo = sharing_memo(model)
    own_config = _copy_of_config(model, parts, memo)
    change.apply(own_config)

    memo[id(vars(model).get("_restack_original"))] = None  # a view of a slung model is not slung itself
    memo[id(parts.layers)] = own_layers = nn.ModuleList()
    result = copy.deepcopy(model, memo)
    own_layers.extend(visits(parts, plan, memo))
    own_layers.training = parts.layers.training
    before = getattr(model, "restack_plan", None)
    result.restack_plan = plan if before is None else before.then(plan)
    return result


def visits(parts: Anatomy, plan: plans.Plan, memo: Memo) -> Iterator[nn.Module]:
    """One layer object a visit, sharing whatever `memo` holds: shells over the same tensors, newly numbered."""
    in_layers = {id(module) for module in parts.layers.modules()}
    outside = {key: value for key, value in memo.items() if key not in in_layers}
    for number, visit in enumerate(plan.visits):
        layer = copy.deepcopy(parts.layers[visit.layer], dict(outside))
        for path, name in parts.index_attributes:
            try:
                module = layer.get_submodule(path)
            except AttributeError:  # a hybrid's layers are not all alike
                continue
            if name in vars(module):
                setattr(module, name, number)
        yield layer


def runnable(plan: plans.Plan) -> plans.Plan:
    """The plan, if views can run all that it asks for.

    Raises:
        ViewError: it damps, scales or shares keys and values, or has several donors; views only order layers yet.
    """
    for number, visit in enumerate(plan.visits):
        asked = {
            "damping (@)": visit.damp != 1,
            "a scale ({})": bool(visit.scale),
            "shared keys and values (kv=)": visit.kv is not None,
            "a sliding window (s)": visit.sliding,
            "a second donor": visit.donor > 0,
        }
        for name, is_asked in asked.items():
            if is_asked:
                raise ViewError(
                    f"visit {number} asks for {name}; views can repeat, skip and reorder layers, no more yet"
                )
    return plan


def sharing_memo(model: nn.Module) -> Memo:
    """A memo with which `copy.deepcopy` copies modules but no tensor: each is declared to be its own copy."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor for tensor in tensors}


def _copy_of_config(model: nn.Module, parts: Anatomy, memo: Memo) -> Any:
    """The view's own copy of the decoder's config, entered in `memo` together with the config it is part of."""
    copy.deepcopy(model.config, memo)
    if id(parts.config) not in memo:
        raise ViewError(
            f"{type(model).__name__} makes its decoder's config anew at each look; views cannot set it"
        )
    return memo[id(parts.config)]
