"""Loading what a reference names, with everything that can be wrong with it told in one line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from restack.errors import ModelError
from restack.recipes.memory import check_memory
from restack.recipes.reference import Reference, check_location, parse_reference

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
) -> Any:
    """Load the model that a reference names; a view of it if the reference has a spec.

    Args:
        reference: a hub id, a folder, or `demo`; with @SPEC for a view.
        dtype: of the weights: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: as torch names it.
        revision: of a model on the hub.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: there is no such model, it is no decoder-only language model that transformers knows, its
            weights are not those that its config says, or do not fit in free memory (those that are still to
            be fetched from the hub are not checked).
        PlanError, ViewError: the spec is not one for this model.
    """
    from transformers import AutoModelForCausalLM

    from restack.plans import plan
    from restack.views import runnable, view

    if isinstance(reference, str):
        reference = parse_reference(reference)
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    config = open_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    if reference.spec is not None:
        runnable(plan(reference.spec, config))  # a wrong spec is told before the weights are read
    check_memory(reference, config, torch_dtype, torch_device, revision)
    with _told_in_one_line(reference):
        model, info = AutoModelForCausalLM.from_pretrained(
            reference.location,
            dtype=torch_dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model = model.to(torch_device).eval()
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers and says so in a warning
        raise ModelError(
            f"the weights of {reference.model} lack {len(missing)} of the tensors that its config.json "
            f"promises, {missing[0]} for one; correct the config, or get the weights again"
        )
    _refuse_more_layers(reference, model, info["unexpected_keys"])
    return model if reference.spec is None else view(model, reference.spec)


def open_config(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The config of the model that a reference names.

    Raises:
        ModelError: there is no such model, or it is no decoder-only language model that transformers knows.
    """
    if isinstance(reference, str):
        reference = parse_reference(reference)
    check_location(reference)
    from transformers import AutoConfig  # takes seconds

    with _told_in_one_line(reference):
        config = AutoConfig.from_pretrained(
            reference.location, revision=revision, trust_remote_code=trust_remote_code
        )
    if other := _other_kind(config):
        raise ModelError(f"{reference.model} is {other}")
    return config


def open_empty(
    reference: str | Reference,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The model that a reference names, without weights (on the meta device): only its config is read."""
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(reference, str):
        reference = parse_reference(reference)
    torch_dtype = _dtype(dtype)
    config = open_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    if torch_dtype == "auto":
        torch_dtype = getattr(config, "dtype", None) or torch.float32
    with _told_in_one_line(reference), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch_dtype, trust_remote_code=trust_remote_code
        )


def open_tokenizer(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of the model that a reference names.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoTokenizer

    if isinstance(reference, str):
        reference = parse_reference(reference)
    with _told_in_one_line(reference, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            reference.location, revision=revision, trust_remote_code=trust_remote_code
        )


def _other_kind(config: Any) -> str | None:
    """What a model is, by its config, and what can be done; None for a decoder-only language model."""
    from transformers.models.auto import modeling_auto as auto

    kind = type(config)
    only = f"({config.model_type}); restack opens decoder-only language models"
    is_causal_lm = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if config.is_encoder_decoder:
        return f"an encoder-decoder {only}"
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING:  # GPT-NeoX, a decoder, sets no is_decoder either
        if not is_causal_lm:
            return f"an encoder {only}"
        if getattr(config, "is_decoder", None) is False:
            return f"an encoder {only}; if it was trained as a decoder, set is_decoder in its config.json"
    if is_causal_lm:
        return None
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        load = "load this one with AutoModelForImageTextToText, and restack.view runs plans on it"
        return f"a vision-language model {only}; {load}"
    if kind in auto.MODEL_FOR_IMAGE_MAPPING or kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return f"a vision model {only}"
    if kind in auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING or kind in auto.MODEL_FOR_CTC_MAPPING:
        return f"an audio model {only}"
    return f"no causal language model that transformers knows {only}"


@contextmanager
def _told_in_one_line(reference: Reference, part: str = "model") -> Iterator[None]:
    """Turn what transformers says in paragraphs into one line."""
    try:
        yield
    except Exception as error:  # whatever a broken model makes of a loader: each library has its own
        reason = " ".join(str(error).split())
        if "model type" in reason or "Unrecognized" in reason:
            reason = f"its architecture is not known to the installed transformers ({reason:.120}...)"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that its config.json says"
        elif "trust_remote_code" in reason:
            reason = "it comes with code of its own; if you trust that, run it with --trust-remote-code"
        elif isinstance(error, OSError) and not reference.is_local:
            reason = "no such folder, and the hub has no such model or cannot be reached"
        raise ModelError(f"cannot open the {part} of {reference.model}: {reason:.300}") from error


def _dtype(name: str) -> "torch.dtype | str":
    import torch

    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not known; write {', '.join(DTYPES)}")
    return "auto" if name == "auto" else getattr(torch, name)


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # each kind of device fails in its own way
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"device {name!r} cannot be used: {reason:.120}; write cpu, cuda or cuda:1"
        ) from None
    return device


def _refuse_more_layers(reference: Reference, model: Any, unexpected: Iterable[str]) -> None:
    """Refuse weights with layers past those of the config: transformers drops them without an error."""
    from restack.errors import ViewError
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
            f"the weights of {reference.model} have {stored} layers and its config.json says "
            f"{len(parts.layers)}; correct the config, and run fewer layers by a spec as in "
            f"{reference.model}@0:{len(parts.layers)}"
        )
