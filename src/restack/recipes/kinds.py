"""What kind of model a config is of: restack opens decoder-only language models."""

from typing import Any

from restack.errors import ModelError


def refuse_other_kinds(config: Any, name: str) -> None:
    """Refuse a model that is no decoder-only language model.

    Raises:
        ModelError: it is another kind, or unknown to transformers.
    """
    if other := _other_kind(config):
        raise ModelError(f"{name} is {other}")


def _other_kind(config: Any) -> str | None:
    """What a model is, by its config, and what can be done; None for a decoder-only language model."""
    from transformers.models.auto import modeling_auto as auto

    from restack.views.anatomy import is_causal_lm

    kind = type(config)
    only = f"({config.model_type}); restack opens decoder-only language models"
    generates = is_causal_lm(config)
    if config.is_encoder_decoder:
        return f"an encoder-decoder {only}"
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING:  # GPT-NeoX, a decoder, sets no is_decoder either
        if not generates:
            return f"an encoder {only}"
        if getattr(config, "is_decoder", None) is False:
            return f"an encoder {only}; if it was trained as a decoder, set is_decoder in its config.json"
    if generates:
        return None
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        load = "load this one with AutoModelForImageTextToText, and restack.view runs plans on it"
        return f"a vision-language model {only}; {load}"
    if kind in auto.MODEL_FOR_IMAGE_MAPPING or kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return f"a vision model {only}"
    if kind in auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING or kind in auto.MODEL_FOR_CTC_MAPPING:
        return f"an audio model {only}"
    return f"no causal language model that transformers knows {only}"
