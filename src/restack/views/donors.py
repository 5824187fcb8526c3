"""Several models that lend layers to one plan, joined: a model with the layers of all, in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import nn

from restack import plans
from restack.errors import ViewError
from restack.plans import Plan, Visit
from restack.views.anatomy import Anatomy, anatomy, decoder_config
from restack.views.arranging import arranged_copy, outside
from restack.views.configuration import COUNTS, LAYER_LISTS, PER_LAYER, concatenated
from restack.views.guards import PLAN

Model = TypeVar("Model", bound=nn.Module)

# Settings in which donors may differ: they name things, or say how a model is trained or generates.
MAY_DIFFER = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label",
    "initializer_range", "label2id", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
TRAINED_ONLY = ("dropout", "pdrop", "dropout_prob")  # how settings end that do nothing at inference


def one_model(models: Any, plan: Any) -> tuple[Any, Any]:
    """The model that a plan is for, and the plan over its layers: of several donors, all joined.

    Args:
        models: a model; or several, in the order of the plan's donors, or by name.
        plan: anything that `restack.plan` reads.

    Raises:
        PlanError: the plan is not one for these models.
        ViewError: the models are not alike.
    """
    if not isinstance(models, Mapping | list | tuple):
        return models, plan
    if not models:
        raise ViewError("there are no models; give at least one")
    for model in models.values() if isinstance(models, Mapping) else models:
        decoder_config(model)  # or it is refused
    whole = plans.plan(plan, models)
    if isinstance(models, Mapping):
        names = plans.donors(plan, models)
        return _joined({name: models[name] for name in names}, whole)
    return _joined({f"model {number}": model for number, model in enumerate(models)}, whole)


def _joined(models: dict[str, Any], plan: Plan) -> tuple[Any, Plan]:
    """A model with the layers of all, and the plan over its layers. It shares every tensor with them."""
    found = {name: anatomy(model) for name, model in models.items()}
    _refuse_unlike(models, found)
    copies = [arranged_copy(model, "all", share_tensors=True) for model in models.values()]
    parts = [anatomy(each) for each in copies]
    first, last = plan.visits[0].donor, plan.visits[-1].donor
    trunk, decoder = copies[first], parts[first]
    if first != last:
        for path in _after_layers(trunk, decoder):
            parent, _, name = path.rpartition(".")
            setattr(trunk.get_submodule(parent), name, copies[last].get_submodule(path))
    concatenated([each.config for each in parts]).apply(decoder.config)
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
        visits += [
            replace(
                visit, donor=visit.donor + donors, kv=None if visit.kv is None else visit.kv + len(visits)
            )
            for visit in plan.visits
        ]
        donors += len(plan.depths)
    return Plan(tuple(visits), depths)


def _hand_over(parts: Anatomy, start: int, configs: Mapping[int, Any]) -> None:
    """Number layers from `start`, and have them read the joined model's config for their own model's."""
    for number, layer in enumerate(parts.layers):
        modules = dict(layer.named_modules())
        for path, name in parts.index_attributes:
            if path in modules and type(vars(modules[path]).get(name)) is int:
                setattr(modules[path], name, start + number)
        for module in modules.values():
            for name, value in list(vars(module).items()):
                if id(value) in configs:
                    setattr(module, name, configs[id(value)])


def _after_layers(model: nn.Module, parts: Anatomy) -> list[str]:
    """The modules with tensors of their own that run after the last layer: the final norm and the head.

    Where they stand in a model does not tell: some list the final norm before the layers, or call it an
    embedding's. So one token is run. A head that is tied to the embedding is none of them.
    """
    around = {module for module in outside(model, parts.layers) if module._parameters}
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: ran.append(module))
        for module in [*around, *parts.layers]
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    layers = set(parts.layers)
    places = [place for place, module in enumerate(ran) if module in layers]
    between = [module for module in ran[places[0] : places[-1]] if module not in layers]
    if between:
        raise ViewError(
            f"{type(model).__name__} runs a {type(between[0]).__name__} between its layers; such models "
            "cannot lend each other layers unless the first and the last visit are of one model"
        )
    before = {id(tensor) for module in ran[: places[0]] for tensor in module.parameters(recurse=False)}
    after = {
        module
        for module in ran[places[-1] :]
        if module in around and not before & {id(tensor) for tensor in module.parameters(recurse=False)}
    }
    return [path for path, module in model.named_modules() if module in after]


def _refuse_unlike(models: Mapping[str, Any], found: Mapping[str, Anatomy]) -> None:
    """Refuse models that cannot run each other's layers.

    Raises:
        ViewError: naming the first difference.
    """
    (one, model), *others = models.items()
    for other, theirs in others:
        if type(theirs) is not type(model):
            raise ViewError(
                f"{one} is a {type(model).__name__} and {other} a {type(theirs).__name__}; donors must be "
                "of one architecture"
            )
        ours, facts = _facts(model, found[one].config), _facts(theirs, found[other].config)
        for name in [*ours, *(facts.keys() - ours.keys())]:
            if ours.get(name) != facts.get(name):
                raise ViewError(
                    f"{name} is {ours.get(name)} in {one} and {facts.get(name)} in {other}; "
                    "models that lend each other layers must agree in it"
                )


def _facts(model: Any, config: Any) -> dict[str, Any]:
    """What donors must agree in, the most telling first: widths, then all else that their configs set."""
    named = config.attribute_map
    counts = {named.get(name, name) for name in COUNTS}
    listed = {named.get(name, name) for name in (*PER_LAYER, *LAYER_LISTS)}
    settings = {
        name: value
        for name, value in config.to_dict().items()
        if name not in MAY_DIFFER | counts
        and not name.endswith(TRAINED_ONLY)
        and not (name in listed and isinstance(value, list | tuple | None))
    }
    first = {name: settings.pop(name) for name in ("hidden_size", "vocab_size") if name in settings}
    placed = {} if hasattr(model, "hf_device_map") else {"device": str(model.device)}
    return {**first, **settings, "dtype": model.dtype, **placed}
