"""What vLLM is told, beside the name of a model, so that it runs a plan of it."""

import copy
from dataclasses import replace
from typing import Any

from restack import recipes
from restack.engines.vllm.relatives import as_relative
from restack.engines.vllm.versions import installed, unsupported
from restack.errors import ModelError, UsageError, ViewError
from restack.plans import Plan, own_plan
from restack.plans.pointing import shown
from restack.recipes.following import Found
from restack.recipes.opening import build_empty
from restack.runtime.packed.quantizer import METHOD
from restack.views.anatomy import anatomy
from restack.views.configuration import LayerSettings, reordered

PREFIX = "Planned"  # of the classes that run plans; the rest is the name of vLLM's own
PLAN, LAYERS = "restack_plan", "restack_layers"  # in the config: the plan, and of how many layers it is
CONFIG_FORMAT = "restack"  # how vLLM is to read the configs of restack-llama and LCKV
# Visits that do not see their own token: how often their layers run is not known when graphs are made; and a
# text must not read keys and values of another that are computed in the same pass, as cached prefixes may be.
PAST_ALONE = {"enforce_eager": True, "enable_prefix_caching": False}
STORED = "store the weights (restack convert full) and serve the folder"


def vllm_arguments(
    model: str | recipes.Reference,
    plan: Plan | None = None,
    *,
    transformers_backend: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`, or options of `vllm serve`, with which vLLM runs a view of a model.

    vLLM reads the model's own checkpoint; nothing is written. Only configs are read here, no weights.

    Args:
        model: MODEL[@SPEC], the name of a recipe included.
        plan: over what `model` names, instead of a spec.
        transformers_backend: run transformers' class of the model, as vLLM's `--model-impl transformers`
            does, where vLLM has one of its own too.
        revision: of the model on the hub.
        trust_remote_code: run code that comes with the model, here and in vLLM.

    Raises:
        ModelError: there is no such model, or vLLM cannot read it as it is stored.
        ViewError: vLLM cannot run the plan on it.
        UsageError: another version of vLLM is installed here than those that were tested.
    """
    if (version := installed()) and (wrong := unsupported(version)):
        raise UsageError(wrong)
    reference = recipes.parse_reference(model) if isinstance(model, str) else model
    found = recipes.find_reference(reference, revision, trust_remote_code)
    if reference.spec is not None:
        found = found.then(reference.spec)
    if plan is not None:
        found = found.then(str(plan))
    _refuse_storage(found)
    place = str(found.location.folder) if found.location.is_local else found.location.name
    arguments: dict[str, Any] = {"model": place}
    if found.location.revision is not None:
        arguments["revision"] = found.location.revision
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    is_named = plan is None or plan.is_identity
    arguments["served_model_name"] = str(reference) if is_named else f"{reference}@{plan}"
    known, iteration = as_relative(found, transformers_backend)
    if own_plan(found.config) is not None:
        arguments["config_format"] = CONFIG_FORMAT
    if (known.plan is not None and not known.plan.is_identity) or iteration:
        overrides = _overrides(known, transformers_backend, trust_remote_code)
        arguments["hf_overrides"] = overrides | iteration
        if iteration:
            arguments |= PAST_ALONE
    elif transformers_backend:
        arguments["model_impl"] = "transformers"
    return arguments


def _refuse_storage(found: Found) -> None:
    """Refuse a model that is stored in a way that vLLM cannot read.

    Raises:
        ModelError: it is.
    """
    if found.location.is_metas:
        raise ModelError(f"vLLM does not read Meta's files; restack convert meta {found.called} --out FOLDER")
    if found.adapter is not None:
        raise ModelError(f"{found.called} has an adapter for each visit, which vLLM cannot load; {STORED}")
    if _is_packed(found.config):
        raise ModelError(
            f"{found.called} has weights as Restack packs them, which vLLM does not read; serve the model "
            "that it was made of, or restack serve this one"
        )
    if found.location.subfolder and not found.location.is_local:
        raise ModelError(f"{found.called} is in a subfolder on the hub, where vLLM does not look; fetch it")


def _is_packed(config: Any) -> bool:
    """Whether a config is of weights that `restack.quantize` has packed."""
    said = getattr(config, "quantization_config", None)
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return bool(method == METHOD)


def _overrides(found: Found, transformers_backend: bool, trust_remote_code: bool) -> dict[str, Any]:
    """What the config is to say instead of what it says: the settings of the layers, and the plan."""
    plan, config = found.plan, found.config
    assert plan is not None
    _refuse_plan(plan)
    settings = _settings(found, plan, trust_remote_code)
    architecture = _architecture(found)
    if transformers_backend:
        is_mixture = any("experts" in name and type(value) is int for name, value in vars(config).items())
        architecture = "TransformersMoEForCausalLM" if is_mixture else "TransformersForCausalLM"
    return {
        "architectures": [PREFIX + architecture],
        **settings,
        PLAN: str(plan),
        LAYERS: plan.depths[0],
    }


def _architecture(found: Found) -> str:
    """The class that the config names.

    Raises:
        ModelError: it names none that can be.
    """
    named = found.config.architectures or ["TransformersForCausalLM"]
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ModelError(
            f"architectures of {found.called} is {shown(named)}; write a list of one class's name"
        )
    return named[0]


def _refuse_plan(plan: Plan) -> None:
    """Refuse a plan that vLLM's layers cannot run.

    Raises:
        ViewError: it is one.
    """
    for number, visit in enumerate(plan.visits):
        owner = plan.owners[number]
        if visit.scale:
            raise ViewError(f"visit {number} scales tensors of its layer, which vLLM shares; {STORED}")
        if visit.sliding:
            raise ViewError(
                f"visit {number} reads keys and values through a window (s in the KV map, or its layer's), "
                "which vLLM cannot be told; write a map without s, over a model without windows"
            )
        if plan.owners[owner] != owner:
            raise ViewError(
                f"visit {number} reads the keys and values of visit {owner}, which reads those of visit "
                f"{plan.owners[owner]} and, on vLLM, keeps none of its own; name visit {plan.owners[owner]}"
            )


def _settings(found: Found, plan: Plan, trust_remote_code: bool) -> dict[str, Any]:
    """The settings of the config that list layers or count them, for the visits of a plan.

    Raises:
        ViewError: a rule of the config makes other layers of some visits than the plan asks for.
    """
    config = found.config
    if config.get_text_config(decoder=True) is not config:
        raise ViewError(
            f"{found.called} is part of a composite model, whose layers vLLM cannot be told; {STORED}"
        )
    now, wanted = LayerSettings.of(config), reordered(config, plan.order)
    changed = {name: value for name, value in wanted.values.items() if value != now.values[name]}
    if wrong := [name for name, value in changed.items() if name.startswith("_") or not _is_plain(value)]:
        raise ViewError(
            f"a rule of {config.model_type} ({wrong[0].strip('_')}) sets layers by their place; {STORED}"
        )
    made = copy.deepcopy(config)
    wanted.apply(made)
    layers, visits = (
        anatomy(build_empty(each, trust_remote_code=trust_remote_code)).layers
        for each in (replace(found, plan=None), replace(found, plan=None, config=made))
    )
    for number, visit in enumerate(plan.visits):
        if _shapes(visits[number]) != _shapes(layers[visit.layer]):
            raise ViewError(
                f"visit {number} is of layer {visit.layer}, and {config.model_type} makes another kind of "
                f"layer at that place; {STORED}"
            )
    return changed


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, int | float | str)


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
