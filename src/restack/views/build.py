"""A plan over a loaded model: a new model object that runs the plan on the base's own weights."""

import copy
import types
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from restack import plans
from restack.errors import ViewError
from restack.views import configuration
from restack.views.anatomy import Anatomy, anatomy
from restack.views.bound import COMPILED, refuse_bound_functions

Model = TypeVar("Model", bound=nn.Module)
Memo = dict[Any, Any]  # of `copy.deepcopy`: {id of a thing: its copy}; torch adds an entry of its own

PLAN = "restack_plan"  # of a view or slung model: the plan that it runs
ORIGINAL = "_restack_original"  # of a slung model: what it ran before
ATOMIC = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # never copied


def view(model: Model, plan: Any) -> Model:
    """A new model of the same class that runs `plan` on weights it shares with `model`.

    Every parameter and buffer of the view *is* the base's; the config, the layer list and every module
    object are the view's own, so any number of views can be used at once, in any number of threads. Each
    visit has its own slot in the KV cache. Costs a millisecond and 30 kB a visit. The plan is kept as
    `restack_plan`; a view of a view keeps the whole plan, over the layers of the first base.

    Args:
        model: a loaded decoder of transformers; it is not changed.
        plan: a `Plan`, or any notation that `restack.plan` reads: `"0:8,4:12"`, `[0, 1, 1, 2]`...

    Raises:
        PlanError: the plan is not one for this model's layers.
        ViewError: the model's layers, or what the plan asks of them, cannot be arranged this way.
    """
    return arranged_copy(model, plan, share_tensors=True)


def arranged_copy(model: Model, plan: Any, *, share_tensors: bool) -> Model:
    """A copy of the model with its layers as `plan` orders them, over the same tensors or copies of them."""
    parts = anatomy(model)
    plan = runnable(plans.plan(plan, len(parts.layers)))
    refuse_bound_functions(model.named_modules())
    memo: Memo = sharing_memo(model) if share_tensors else {}
    config = _copy_of_config(model, parts, memo)
    configuration.refuse_tables(parts.config, outside(parts.decoder, parts.layers))
    configuration.reordered(config, plan.order).apply(config)

    whole = plan_after(model, plan)
    for name in (PLAN, ORIGINAL):  # replaced below, so not worth a copy
        if name in vars(model):
            memo[id(vars(model)[name])] = vars(model)[name]
    for module in model.modules():
        for name in COMPILED:  # left out below
            if name in vars(module):
                memo[id(vars(module)[name])] = vars(module)[name]
    own_layers = _empty_copy(parts.layers, memo)
    result = copy.deepcopy(model, memo)
    _refuse_strays(model, parts, memo)
    own_layers.extend(visits(parts, plan, memo))
    for module in result.modules():
        for name in COMPILED:
            vars(module).pop(name, None)
    vars(result).pop(ORIGINAL, None)
    vars(result)[PLAN] = whole
    return result


def visits(parts: Anatomy, plan: plans.Plan, memo: Memo) -> Iterator[nn.Module]:
    """One layer object a visit, newly numbered; what `memo` holds is shared by them all."""
    for number, visit in enumerate(plan.visits):
        # torch keeps the storages that it copied in the memo's memo: one for each visit, too.
        own_memo = {**memo, "torch": dict(memo.get("torch", {}))}
        layer = copy.deepcopy(parts.layers[visit.layer], own_memo)
        modules = dict(layer.named_modules())
        for path, name in parts.index_attributes:
            module = modules.get(path)  # a hybrid's layers are not all alike
            if module is not None and type(vars(module).get(name)) is int:
                setattr(module, name, number)
        yield layer


def outside(model: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """The modules that can be reached from the model without passing through its layer list."""
    return [module for _, module in model.named_modules(memo={layers})]


def sharing_memo(model: nn.Module) -> Memo:
    """A memo with which `copy.deepcopy` copies modules but no tensor: each is declared to be its own copy."""
    tensors: Memo = {}
    seen = set()
    left: list[Any] = [model]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            tensors[id(value)] = value
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list | tuple | set):
            left.extend(value)
        elif isinstance(value, types.MethodType):
            left.append(value.__self__)
        elif hasattr(value, "__dict__") and not isinstance(value, ATOMIC) and id(value) not in seen:
            seen.add(id(value))
            left.extend(vars(value).values())
    return tensors


def plan_after(model: nn.Module, plan: plans.Plan) -> plans.Plan:
    """The whole plan of a model that now also runs `plan`: it may be a view already."""
    before: plans.Plan | None = vars(model).get(PLAN)
    return plan if before is None else before.then(plan)


def runnable(plan: plans.Plan) -> plans.Plan:
    """The plan, if views can run all that it asks for; a model may still refuse it.

    Views order the layers of one model; they do not damp, scale, or share keys and values yet.

    Raises:
        ViewError: it damps, scales or shares keys and values, or has several donors.
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
    if len(plan.depths) > 1:
        raise ViewError(
            f"the plan is over {len(plan.depths)} models; views are of one, so write it for that one alone"
        )
    return plan


def _empty_copy(layers: nn.ModuleList, memo: Memo) -> nn.ModuleList:
    """A copy of a layer list, entered in `memo`: its class, attributes and hooks, but none of its layers."""
    memo[id(layers)] = result = type(layers).__new__(type(layers))
    state: dict[str, Any] = layers.__getstate__()  # type: ignore[no-untyped-call]
    attributes = {name: value for name, value in state.items() if name != "_modules"}
    vars(result).update(copy.deepcopy(attributes, memo), _modules={})
    return result


def _copy_of_config(model: nn.Module, parts: Anatomy, memo: Memo) -> Any:
    """The copy's own decoder config, entered in `memo` together with the config it is part of."""
    copy.deepcopy(model.config, memo)
    if id(parts.config) not in memo:
        raise ViewError(
            f"{type(model).__name__} makes its decoder's config anew at each look; views cannot set it"
        )
    return memo[id(parts.config)]


def _refuse_strays(model: nn.Module, parts: Anatomy, memo: Memo) -> None:
    """Refuse a model that holds on to part of a layer from outside its layer list: which visit does it mean?

    A module that knows no index, such as a rotary embedding, may be the same one in the layers and outside.
    """
    registered = set(outside(model, parts.layers))
    numbering = {name for _, name in parts.index_attributes}
    for path, module in parts.layers.named_modules():
        knows_index = any(numbering & vars(part).keys() for part in module.modules())
        if id(module) in memo and path and (knows_index or module not in registered):
            raise ViewError(
                f"{type(model).__name__} refers to {parts.path}.{path} from outside its layers; views cannot "
                "tell which visit of it is meant"
            )
