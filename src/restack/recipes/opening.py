"""Loading what a reference names, with everything that can be wrong with it told in one line."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from restack.errors import ModelError, ViewError
from restack.plans import Plan
from restack.recipes.fingerprint import stored_tensors
from restack.recipes.following import MOST_RECIPES, Found, base_of, config_of_view, find, read_recipe
from restack.recipes.location import Location
from restack.recipes.memory import check_memory, check_memory_quantised
from restack.recipes.merges import Merge
from restack.recipes.reference import Reference, check_location, parse_reference
from restack.recipes.telling import told_in_one_line

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def open(
    reference: str | Reference,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    plan: Plan | None = None,
    quantization_config: Any = None,
) -> Any:
    """Load the model that a reference names; a view of it if the reference has a spec or names a recipe.

    A folder in Meta's own layout is opened as restack-llama; so is a model of Llama's family (llama, mistral,
    qwen2, qwen3) whose plan has visits that read the keys and values of a visit above them. The adapter of a
    recipe that has one is put on, for inference.

    Args:
        reference: a hub id, a folder, a recipe (the folder or hub id of one), a mergekit config (.yaml) with
            the hub ids or folders of its models, or `demo`; with @SPEC for a view of it. The layers of a
            recipe or a merge are its visits.
        dtype: of the weights: "auto" (as stored; for a merge, what it says), "float32", "bfloat16" or
            "float16".
        device: as torch names it.
        revision: of a model or recipe on the hub.
        trust_remote_code: run code that comes with the model.
        base: where a recipe's base is, if not where the recipe says.
        plan: one that views of the model are going to run; it must be one that can.
        quantization_config: how transformers is to quantise weights as it reads them, such as
            `restack.runtime.packed.PackedConfig("int4")`; None to take them as they are.

    Raises:
        ModelError: there is no such model, it is no decoder-only language model that transformers knows, its
            weights are not those that its config says, or do not fit in free memory (those that are still to
            be fetched from the hub are not checked); or a recipe is of a newer version, its base is not
            there, or is another model than it was saved for; or it has an adapter, and peft is not installed;
            or it is to be quantised, and is quantised already.
        PlanError, ViewError: the spec is not one for this model.
    """
    from restack.views import runnable

    reference = _parsed(reference)
    if reference.is_merge:
        if plan is not None:
            runnable(plan)
        merge = _merge(reference, revision or base)
        own = merge.dtype_for(dtype)
        open_empty(reference, dtype=own, trust_remote_code=trust_remote_code)  # or refused, in seconds
        return merge.view(
            lambda model: open(
                model,
                dtype=own,
                device=device,
                trust_remote_code=trust_remote_code,
                quantization_config=quantization_config,
            )
        )
    found = _found(reference, revision, trust_remote_code, base).ready(plan)
    return _viewed(found, _base_model(found, dtype, device, trust_remote_code, quantization_config))


def open_config(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The config of the model that a reference names; that of the view, if it names a recipe.

    Raises:
        ModelError: there is no such model, or it is no decoder-only language model that transformers knows.
    """
    reference = _parsed(reference)
    if reference.is_merge:
        return open_empty(reference, revision=revision, trust_remote_code=trust_remote_code).config
    return config_of_view(find_reference(reference, revision, trust_remote_code))


def open_empty(
    reference: str | Reference,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    plan: Plan | None = None,
) -> Any:
    """The model that a reference names, without weights (on the meta device): only its config is read.

    Where views of it cannot run `plan`, it is the model all the same. An adapter is left out.
    """
    reference = _parsed(reference)
    if reference.is_merge:
        merge = _merge(reference, revision)
        own = merge.dtype_for(dtype)
        return merge.view(lambda model: open_empty(model, dtype=own, trust_remote_code=trust_remote_code))
    torch_dtype = dtype_named(dtype)
    found = find_reference(reference, revision, trust_remote_code).ready()
    with suppress(ViewError):
        found = found.ready(plan)
    return build_empty(found, torch_dtype, trust_remote_code=trust_remote_code)


def open_tokenizer(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of the model that a reference names; of a merge, that of its base_model or first model.

    Raises:
        ModelError: it has none.
    """
    reference = _parsed(reference)
    if reference.is_merge:
        reference = _merge(reference, revision).tokenizer_of
        check_location(reference)
    location = Location(reference.location, revision)
    return load_tokenizer(location, name=reference.model, trust_remote_code=trust_remote_code)


def find_reference(
    reference: str | Reference, revision: str | None, trust_remote_code: bool, base: str | None = None
) -> Found:
    """What a reference, its spec left aside, comes to.

    Raises:
        ModelError: as `open` does before it reads weights.
    """
    reference = _parsed(reference)
    if reference.is_merge:
        raise ModelError(
            f"{reference.model} is a merge of models, and a recipe names one; name one of them, or store the "
            "weights (--weights full)"
        )
    location = Location(reference.location, revision)
    return find(location, name=reference.model, base=base, trust_remote_code=trust_remote_code)


def load_view(
    location: Location, *args: Any, hub: Mapping[str, Any], output_loading_info: bool = False, **kwargs: Any
) -> Any:
    """The view that a recipe describes, as `AutoModelForCausalLM.from_pretrained` gives it.

    Args:
        location: of the recipe.
        args, kwargs: for the base's own `from_pretrained`.
        hub: how to reach the hub: cache_dir, token...
        output_loading_info: return the view, and what was unexpected in the base's weights.
    """
    found = find(location, trust_remote_code=bool(kwargs.get("trust_remote_code")), hub=hub).ready()
    model, info = _load(found, *args, **{**hub, **kwargs})
    result = _viewed(found, model, hub=hub)
    return (result, info) if output_loading_info else result


def build_view(location: Location, settings: Mapping[str, Any], **kwargs: Any) -> Any:
    """The view that a recipe describes over a base with random weights, and these settings in its config.

    An adapter is left out.
    """
    found = find(location).ready()
    for name, value in settings.items():
        setattr(found.config, name, value)
    return _built(found, **kwargs)


def build_empty(found: Found, dtype: "torch.dtype | str" = "auto", *, trust_remote_code: bool = False) -> Any:
    """The model or view on the meta device, in its own dtype if that is "auto"."""
    import torch

    if dtype == "auto":
        dtype = getattr(found.config, "dtype", None) or torch.float32
    with torch.device("meta"):
        return _built(found, dtype=dtype, trust_remote_code=trust_remote_code)


def load_tokenizer(
    location: Location,
    *args: Any,
    name: str | None = None,
    hub: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Any:
    """The tokenizer of a model, or of the base of a recipe."""
    from transformers import AutoTokenizer

    name = name or location.name
    for _ in range(MOST_RECIPES):
        recipe, location = read_recipe(location, name, hub)
        if recipe is None:
            break
        location = base_of(recipe, location, name)
    with told_in_one_line(name, location.is_local, "tokenizer"):
        if location.is_metas:
            from restack.llama.meta_tokenizer import read_tokenizer

            return read_tokenizer(location.folder)
        options = {**(hub or {}), **location.options, **kwargs}
        tokenizer = AutoTokenizer.from_pretrained(
            location.name, *args, trust_remote_code=trust_remote_code, **options
        )
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # made up, from the config alone
            raise ModelError("its files have none; put tokenizer.json beside them")
        return tokenizer


def _merge(reference: Reference, only_of_one_model: str | None) -> Merge:
    if only_of_one_model is not None:
        raise ModelError(
            f"{reference.model} names its models itself; {only_of_one_model!r} can be of one only"
        )
    return Merge.of(reference)


def _parsed(reference: str | Reference) -> Reference:
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    check_location(parsed)
    return parsed


def _found(reference: Reference, revision: str | None, trust_remote_code: bool, base: str | None) -> Found:
    """What a reference, with its spec, comes to."""
    found = find_reference(reference, revision, trust_remote_code, base)
    return found if reference.spec is None else found.then(reference.spec)


def _base_model(
    found: Found, dtype: str, device: str, trust_remote_code: bool, quantization_config: Any
) -> Any:
    """The model that plans are over, with its weights, on its device."""
    torch_dtype, torch_device = dtype_named(dtype), device_named(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if quantization_config is None:
        check_memory(found.model, found.config, torch_dtype, torch_device, found.location.revision)
    elif getattr(found.config, "quantization_config", None) is not None:
        raise ModelError(f"{found.called} is quantised already; open it as it is (without --quantize)")
    else:
        plain = replace(found, plan=None, adapter=None)
        empty = build_empty(plain, torch_dtype, trust_remote_code=trust_remote_code)
        with told_in_one_line(found.called, found.location.is_local):
            check_memory_quantised(found.model, empty, quantization_config, torch_device)
        options["quantization_config"] = quantization_config
    model, _ = _load(found, dtype=torch_dtype, **options)
    with told_in_one_line(found.called, found.location.is_local):
        return model.to(torch_device).eval()


def _viewed(
    found: Found, model: Any, *, hub: Mapping[str, Any] | None = None, with_adapter: bool = True
) -> Any:
    """The view of a model that recipes and a spec ask for; the model itself if they ask for none."""
    from restack.views import view

    adapter = found.adapter
    if adapter is None:
        return model if found.plan is None else view(model, found.plan)
    from restack.recipes.adapters import put_on, visits_apart

    result = visits_apart(view(model, adapter.plan))
    if with_adapter:
        put_on(result, adapter.location, adapter.recipe, hub)
    return result if adapter.above is None else view(result, adapter.above)


def _load(found: Found, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The model with its weights, and what was found of them, once they are known to be all there."""
    from transformers import AutoModelForCausalLM

    from restack.llama.config import RestackLlamaConfig
    from restack.llama.model import RestackLlamaForCausalLM

    opens: Any = RestackLlamaForCausalLM if type(found.config) is RestackLlamaConfig else AutoModelForCausalLM
    name, is_local = found.called, found.location.is_local
    if is_local:
        with told_in_one_line(name, is_local):
            stored_tensors(found.location)  # none is cut short
        found.refuse_other_weights()
    with told_in_one_line(name, is_local):
        model, info = opens.from_pretrained(
            found.location.name, *args, output_loading_info=True, **{**kwargs, **found.location.options}
        )
    if not is_local:  # they have been fetched now
        found.refuse_other_weights()
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers and says so in a warning
        raise ModelError(
            f"the weights of {name} lack {len(missing)} of the tensors that its config.json promises, "
            f"{missing[0]} for one; correct the config, or get the weights again"
        )
    _refuse_more_layers(name, model, info["unexpected_keys"])
    return model, info


def _built(found: Found, **kwargs: Any) -> Any:
    """The model with random weights, or on the meta device with none; its view, if there is a plan."""
    from transformers import AutoModelForCausalLM

    with told_in_one_line(found.called, found.location.is_local):
        model = AutoModelForCausalLM.from_config(found.config, **kwargs)
    return _viewed(found, model, with_adapter=False)


def dtype_named(name: str) -> "torch.dtype | str":
    """The dtype of a name; "auto" as it is."""
    import torch

    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not known; write {', '.join(DTYPES)}")
    return "auto" if name == "auto" else getattr(torch, name)


def device_named(name: str) -> "torch.device":
    """The device of a name, if it is there and holds weights.

    Raises:
        ModelError: it is not.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except Exception as error:  # each kind of device fails in its own way
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"device {name!r} cannot be used: {reason:.120}; write cpu, cuda or cuda:1"
        ) from None
    return device


def _refuse_more_layers(name: str, model: Any, unexpected: Iterable[str]) -> None:
    """Refuse weights with layers past those of the config: transformers drops them without an error."""
    from restack.views.anatomy import anatomy

    try:
        parts = anatomy(model)
    except ViewError:  # without a spec, a model that views do not know is served too
        return
    prefix = f"{model.base_model_prefix}."  # weights may have been saved without it
    path = re.escape(parts.path.removeprefix(prefix))
    numbered = re.compile(rf"(?:{re.escape(prefix)})?{path}\.([0-9]+)\.")
    stored = max((int(found[1]) + 1 for name in unexpected if (found := numbered.match(name))), default=0)
    # Layers that predict the tokens after the next are stored behind the others; transformers drops them.
    extra = getattr(parts.config, "num_nextn_predict_layers", None) or 0
    if stored > len(parts.layers) + extra:
        raise ModelError(
            f"the weights of {name} have {stored} layers and its config.json says "
            f"{len(parts.layers)}; correct the config, and run fewer layers by a spec as in "
            f"{name}@0:{len(parts.layers)}"
        )
