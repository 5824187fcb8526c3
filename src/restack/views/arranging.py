"""How a model comes to run a plan: checked, its config reordered, one layer object a visit."""

import copy
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import nn

from restack import plans
from restack.errors import ViewError
from restack.views import by_place, configuration, damping, planned, scaling, sliding
from restack.views.anatomy import Anatomy, anatomy, copied_layer
from restack.views.bound import copied, left_out, refuse_bound_functions, take_scales
from restack.views.frozen_config import UNSAVED, freezing
from restack.views.guards import PLAN, unguarded

Model = TypeVar("Model", bound=nn.Module)
Memo = dict[Any, Any]  # of `copy.deepcopy`: {id of a thing: its copy}; torch adds an entry of its own

ORIGINAL = "_restack_original"  # of a slung model: what it ran before
ATOMIC = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # never copied


@dataclass(frozen=True, slots=True)
class Preparation:
    """A plan checked against a model, and what it asks for in that model's terms."""

    parts: Anatomy
    plan: plans.Plan
    whole: plans.Plan  # over the layers of the first base, if the model is a view
    kinds: sliding.Kinds
    settings: configuration.LayerSettings
    around: list[nn.Module]  # the decoder's modules outside its layers

    @classmethod
    def of(cls, model: nn.Module, plan: Any, **notations: Any) -> "Preparation":
        """Check that `model` can run a plan.

        Args:
            model: loaded.
            plan: anything that `restack.plan` reads; or None, and one of its keywords.
            notations: those keywords.

        Raises:
            PlanError: the plan is not one for this model's layers.
            ViewError: the model's layers, or what the plan asks of them, cannot be arranged this way.
        """
        parts = anatomy(model)
        plan = runnable(plans.plan(plan, len(parts.layers), **notations))
        whole = plan_after(model, plan)
        scaling.check(plan, parts.layers, parts.path)
        around = outside(parts.decoder, parts.layers)
        configuration.refuse_tables(parts.config, around)
        by_place.refuse_unknown(parts.config, around)
        kinds = sliding.kinds_of(plan, parts.layers, parts.config)
        settings = sliding.with_kinds(configuration.reordered(parts.config, plan.order), kinds)
        return cls(parts, plan, whole, kinds, settings, around)

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return len(self.parts.layers)


def arranged_copy(model: Model, plan: Any, *, share_tensors: bool) -> Model:
    """A copy of the model with its layers as `plan` orders them, over the same tensors or copies of them."""
    if planned.runs_plans(model):
        return cast(Model, _planned_copy(model, plan, share_tensors))
    ready = Preparation.of(model, plan)
    parts, whole = ready.parts, ready.whole
    refuse_bound_functions(model.named_modules())
    memo = _memo(model, share_tensors)
    config = _copy_of_config(model, parts, memo)
    copy.deepcopy(ready.settings).apply(config)
    own_layers = _empty_copy(parts.layers, memo)
    result = copied(model, memo)
    _refuse_strays(model, parts, memo)
    own_layers.extend(visits(ready, memo))
    if sliding.SLIDING in ready.kinds:
        for module in result.modules():
            if vars(module).get("has_sliding_layers") is False:  # then it would make no mask for them
                vars(module)["has_sliding_layers"] = True
    placed = by_place.ByPlace.of(ready.around).reordered(config, ready.plan.order, ready.depth)
    copies = [memo[id(module)] for module in ready.around]
    if not share_tensors:
        by_place.cut(copies, placed.parts)
        placed = replace(placed, parts=None)
    placed.apply(copies)
    _finish(result, whole)
    if PLAN in vars(model):  # then the reason was that plan; a materialised model has its own
        vars(result.config).pop(UNSAVED, None)
    if share_tensors and (reason := unsaved_reason(whole)):
        refuse_saving(result.config, reason)
    return result


def _planned_copy(model: Any, plan: Any, share_tensors: bool) -> Any:
    """The same of a model that runs plans by itself."""
    plan = plans.plan(plan, planned.visit_count(model))
    refuse_several_models(plan)
    memo = _memo(model, share_tensors)
    is_scaled = any(visit.scale for visit in plan.visits)
    if share_tensors and not is_scaled:
        result = copied(model, memo)
        planned.set_plan(result, plan)
    else:
        result = planned.unrolled(model, plan, memo)
    _finish(result, plan_after(model, plan))
    if share_tensors and is_scaled:
        refuse_saving(result.config, unsaved_reason(plan) or "")
    return result


def _memo(model: nn.Module, share_tensors: bool) -> Memo:
    """A memo with which a model is copied, but for what `_finish` takes out or replaces."""
    memo: Memo = sharing_memo(model) if share_tensors else {}
    for name in (PLAN, ORIGINAL):
        if name in vars(model):
            memo[id(vars(model)[name])] = vars(model)[name]
    for module in model.modules():
        for name in left_out(module):
            memo[id(vars(module)[name])] = vars(module)[name]
    return memo


def _finish(result: nn.Module, whole: plans.Plan) -> None:
    """Have a copy be a model of its own, that knows the plan it runs."""
    for module in result.modules():
        for name in left_out(module):
            del vars(module)[name]
    unguarded(result)
    vars(result).pop(ORIGINAL, None)
    vars(result)[PLAN] = whole


def visits(ready: Preparation, memo: Memo) -> Iterator[nn.Module]:
    """One layer object a visit, newly numbered and doing what the plan asks; what `memo` holds is shared.

    Args:
        ready: the plan, and the model whose layers are visited.
        memo: of `copy.deepcopy`.
    """
    parts, plan, kinds = ready.parts, ready.plan, ready.kinds
    read = {visit.kv for visit in ready.whole.visits}
    shares = read != {None} or any("restack_role" in vars(layer) for layer in parts.layers)
    if shares:
        from restack.views import shared_kv  # which loads transformers' caches

        sharing = shared_kv.Sharing.of(ready.whole)
        if sharing is not None:
            shared_kv.check(sharing, plan.order, kinds, parts)
    common = {id(copied) for copied in memo.values()}
    for number, visit in enumerate(plan.visits):
        layer = copied_layer(parts.layers[visit.layer], memo)
        parts.renumber(layer, number)
        scaling.scale(layer, visit.scale, parts.path, common)
        if shares:
            shared_kv.share(layer, number, sharing)
        if visit.sliding and kinds[number] == sliding.SLIDING:
            sliding.slide(layer, parts.config.sliding_window)
        damping.damp(layer, visit.damp, number, may_skip=number not in read, kind=kinds[number])
        yield layer


def outside(model: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """The modules that can be reached from the model without passing through its layer list."""
    return [module for _, module in model.named_modules(memo={layers})]


def sharing_memo(model: nn.Module) -> Memo:
    """A memo with which `copy.deepcopy` copies modules but no tensor: each is declared to be its own copy."""
    take_scales(model)
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


def unsaved_reason(plan: plans.Plan) -> str | None:
    """Why the weights and the config of a view do not say what it runs; None where they do."""
    for number, visit in enumerate(plan.visits):
        if visit != plans.Visit(visit.layer, donor=visit.donor):
            return f"visit {number} runs otherwise than its weights say ({plan})"
    return None


def refuse_saving(config: Any, reason: str) -> None:
    """Have `save_pretrained` refused, of a config and of its model, with this reason."""
    config_class: type = type(config)
    config.__class__ = freezing(config_class)
    vars(config)[UNSAVED] = reason


def runnable(plan: plans.Plan) -> plans.Plan:
    """The plan, if views can run all that it asks for; a model may still refuse it.

    Views order, damp and scale the layers of a model; a visit may read the keys and values of one below it.

    Raises:
        ViewError: a visit reads the keys and values of one above it, or the plan is over several models.
    """
    for number, visit in enumerate(plan.visits):
        if visit.kv is not None and visit.kv > number:
            raise ViewError(
                f"visit {number} reads the keys and values of visit {visit.kv}, which runs after it; views "
                "share with owners below; only models of the type restack-llama share with owners above, and "
                "a llama, mistral, qwen2 or qwen3 becomes one when it is opened with --kv (kv_map= in Python)"
            )
    refuse_several_models(plan)
    return plan


def refuse_several_models(plan: plans.Plan) -> None:
    """Refuse a plan over several models, where there is one."""
    if len(plan.depths) > 1:
        raise ViewError(
            f"the plan is over {len(plan.depths)} models and there is one; give them all, as in "
            "restack.view([first, second], plan)"
        )


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
