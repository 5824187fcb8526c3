"""Several models that lend layers to one plan, joined: a model with the layers of all, in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from restack import plans
from restack.errors import PlanError, ViewError
from restack.plans import Plan, Visit
from restack.plans.pointing import counted
from restack.views.anatomy import Anatomy, anatomy, decoder_config, has_weights, input_device
from restack.views.arranging import arranged_copy
from restack.views.configuration import COUNTS, LAYER_LISTS, PER_LAYER, concatenated
from restack.views.guards import PLAN

# Settings in which donors may differ: they name tokens, or say how a model is trained or generates.
MAY_DIFFER = {
    "bos_token_id", "cls_token_id", "dtype", "eos_token_id", "initializer_range", "mask_token_id",
    "output_router_logits", "pad_token_id", "pretraining_tp", "router_aux_loss_coef", "sep_token_id",
    "use_cache",
}  # fmt: skip
TRAINED_ONLY = ("dropout", "pdrop", "dropout_prob")  # how settings end that do nothing at inference
OF_ALL_CLASSES = {"tie_word_embeddings", "is_decoder"}  # the settings that every config has, and that matter


def one_model(models: Any, plan: Any) -> tuple[Any, Any]:
    """The model that a plan is for, and the plan over its layers: of several donors, all joined.

    Args:
        models: a model; or several, in the order of the plan's donors, or by name.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError: the plan is not one for these models.
        ViewError: the models are not alike.
    """
    named = plans.donors(plan)
    if not isinstance(models, Mapping | list | tuple):
        if len(named) > 1:
            raise PlanError(
                f"the config names {len(named)} models; give all of them, as in {{{named[0]!r}: model}}"
            )
        return models, plan
    if not models:
        raise ViewError("there are no models; give at least one")
    for model in models.values() if isinstance(models, Mapping) else models:
        decoder_config(model)  # or it is refused
    if named and not isinstance(models, Mapping):
        if len(named) != len(models):
            raise PlanError(f"the config names {counted(len(named), 'model')}, and there are {len(models)}")
        models = dict(zip(named, models, strict=True))
    if missing := [name for name in named if name not in models]:
        raise PlanError(f"the config names {missing[0]!r}, and the models given are {', '.join(models)}")
    whole = plans.plan(plan, models)
    if isinstance(models, Mapping):
        return _joined({name: models[name] for name in named or models}, whole)
    return _joined({f"model {number}": model for number, model in enumerate(models)}, whole)


def _joined(models: dict[str, Any], plan: Plan) -> tuple[Any, Plan]:
    """A model with the layers of all, and the plan over its layers. It shares every tensor with them."""
    found = {name: anatomy(model) for name, model in models.items()}
    _refuse_unlike(models, found)
    copies = [arranged_copy(model, "all", share_tensors=True) for model in models.values()]
    parts = [anatomy(each) for each in copies]
    first, last = plan.visits[0].donor, plan.visits[-1].donor
    trunk, decoder = copies[first], parts[first]
    for other in copies:
        if other.training is not trunk.training:
            other.train(trunk.training)
    if first != last and has_weights(trunk):  # tensors without values cannot be told apart
        for other in (trunk, copies[last]):
            _refuse_offloaded(other)
        _take_what_comes_after(trunk, copies[last])
    concatenated(decoder.config, [each.config for each in parts]).apply(decoder.config)
    starts = [0, *accumulate(len(each.layers) for each in parts)]
    members = []
    for start, model, each in zip(starts, copies, parts, strict=False):
        _hand_over(each, start, {id(model.config): trunk.config, id(each.config): decoder.config})
        members += list(each.layers)
    del decoder.layers[:]
    decoder.layers.extend(members)
    vars(trunk)[PLAN] = _everything([vars(model)[PLAN] for model in copies])
    visits = (replace(visit, layer=starts[visit.donor] + visit.layer, donor=0) for visit in plan.visits)
    return trunk, Plan(tuple(visits), (len(members),))


def _everything(each: Sequence[Plan]) -> Plan:
    """The plan of the joined model: all that each of them runs, over the layers of all their bases."""
    depths = tuple(depth for plan in each for depth in plan.depths)
    visits: list[Visit] = []
    donors = 0
    for plan in each:
        start = len(visits)
        for visit in plan.visits:
            owner = None if visit.kv is None else visit.kv + start
            visits.append(replace(visit, donor=visit.donor + donors, kv=owner))
        donors += len(plan.depths)
    return Plan(tuple(visits), depths)


def _hand_over(parts: Anatomy, start: int, configs: Mapping[int, Any]) -> None:
    """Number layers from `start`, and have them read the joined model's config for their own model's."""
    for number, layer in enumerate(parts.layers):
        parts.renumber(layer, start + number)
        for module in layer.modules():
            for name, value in list(vars(module).items()):
                if id(value) in configs:
                    setattr(module, name, configs[id(value)])


def _take_what_comes_after(trunk: nn.Module, last: nn.Module) -> None:
    """Give `trunk` the tensors of `last` that are used after the layers: of the final norm and the head.

    A head that is tied to the embedding stays so.
    """
    for path, names in used_after_layers(trunk).items():
        ours, theirs = trunk.get_submodule(path), last.get_submodule(path)
        for name in names:
            held = ours._parameters if name in ours._parameters else ours._buffers
            held[name] = getattr(theirs, name)


def used_after_layers(model: nn.Module) -> dict[str, list[str]]:
    """The tensors, by the path of their module, of what runs after the last layer and not before the first.

    Where modules stand in a model does not tell: some list the final norm before the layers, or call it an
    embedding's. So one token is run, through a copy without hooks.
    """
    probe = arranged_copy(model, "all", share_tensors=True).eval()
    layers = set(anatomy(probe).layers)
    around = {module: path for path, module in probe.named_modules(memo=set(layers)) if _own_tensors(module)}
    ran: list[nn.Module] = []
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for module in [*around, *layers]:
        module.register_forward_pre_hook(lambda module, args: ran.append(module))
    with torch.no_grad():
        probe(torch.zeros(1, 1, dtype=torch.long, device=input_device(model)))
    places = [place for place, module in enumerate(ran) if module in layers]
    between = [module for module in ran[places[0] : places[-1]] if module not in layers]
    if between:
        raise ViewError(
            f"{type(model).__name__} runs a {type(between[0]).__name__} between its layers; such models "
            "cannot lend each other layers unless the first and the last visit are of one model"
        )
    before = {id(tensor) for module in ran[: places[0]] for tensor in _own_tensors(module).values()}
    return {
        around[module]: [name for name, tensor in _own_tensors(module).items() if id(tensor) not in before]
        for module in ran[places[-1] + 1 :]
    }


def _refuse_offloaded(model: nn.Module) -> None:
    for path, module in model.named_modules(memo={anatomy(model).layers}):
        if any(tensor.is_meta for tensor in _own_tensors(module).values()):
            raise ViewError(
                f"{path} is offloaded, and what runs after the layers is of another model than what runs "
                "before them; keep it in memory, or let the first and the last visit be of one model"
            )


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    held = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def _refuse_unlike(models: Mapping[str, Any], found: Mapping[str, Anatomy]) -> None:
    """Refuse models that cannot run each other's layers.

    Raises:
        ViewError: naming the first difference.
    """
    for name, model in models.items():
        for path, module in model.named_modules(memo={found[name].layers}):
            if hasattr(module, "base_layer"):
                raise ViewError(f"{path} of {name} has an adapter of peft; merge it, or only adapt layers")
    (one, model), *others = models.items()
    for other, theirs in others:
        if type(theirs) is not type(model):
            raise ViewError(
                f"{one} is a {_class_name(model)} and {other} a {_class_name(theirs)}; donors must be of one "
                "architecture"
            )
        ours, facts = _facts(model, found[one].config), _facts(theirs, found[other].config)
        for name in [*ours, *(facts.keys() - ours.keys())]:
            if ours.get(name) != facts.get(name):
                raise ViewError(
                    f"{name} is {ours.get(name)} in {one} and {facts.get(name)} in {other}; "
                    "models that lend each other layers must agree in it"
                )


def _class_name(model: Any) -> str:
    ours = type(model).__module__.startswith("transformers.")
    return type(model).__name__ if ours else f"{type(model).__module__}.{type(model).__name__}"


def _facts(model: Any, config: Any) -> dict[str, Any]:
    """What donors must agree in, the most telling first: widths, then all else that their configs set."""
    named = config.attribute_map
    # Of configs that transformers knows, what they do not declare has no effect: notes of some tool.
    is_known = type(config).__module__.startswith("transformers.")
    own = {field.name for field in fields(config)} if is_known else set(config.to_dict())
    own -= {field.name for field in fields(PreTrainedConfig)}
    known = (own | OF_ALL_CLASSES) - MAY_DIFFER - {named.get(name, name) for name in COUNTS}
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") == "default":  # any position is computed alike
        known.discard("max_position_embeddings")
    listed = {named.get(name, name) for name in (*PER_LAYER, *LAYER_LISTS)}
    settings = {
        name: value
        for name, value in config.to_dict().items()
        if name in known
        and not name.endswith(TRAINED_ONLY)
        and not (name in listed and isinstance(value, list | tuple | None))
    }
    first = {name: settings.pop(name) for name in ("hidden_size", "vocab_size") if name in settings}
    placed = str(input_device(model)) if has_weights(model) else "meta"
    device = {} if hasattr(model, "hf_device_map") else {"device": placed}
    return {**first, **settings, "dtype": model.dtype, **device}
