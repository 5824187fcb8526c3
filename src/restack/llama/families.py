"""The configs of Llama's relatives, said as ours: Llama, Mistral, Qwen2, Qwen3."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from restack.errors import ModelError
from restack.plans.pointing import shown

SAME = (
    "architectures", "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
    "head_dim", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "quantization_config", "rms_norm_eps", "rope_parameters",
    "sliding_window", "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
# Of each kind: transformers' config, and what it has without saying it.
FAMILIES: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "llama": (LlamaConfig, lambda config: {}),
    "mistral": (
        MistralConfig,
        lambda config: {"layer_types": _all_slide(config)} if config.sliding_window else {},
    ),
    "qwen2": (
        Qwen2Config,
        lambda config: {
            "attention_bias": True,
            "attention_out_bias": False,
            "layer_types": config.layer_types,
        },
    ),
    "qwen3": (Qwen3Config, lambda config: {"qk_norm": True, "layer_types": config.layer_types}),
}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a restack-llama that is the model a Hugging Face config.json says.

    Raises:
        ModelError: the model is of another family.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"model_type is {shown(kind)}; restack-llama can be a model of {known}")
    of_kind, unsaid = FAMILIES[kind]
    theirs = of_kind(**{name: value for name, value in config.items() if name != "model_type"})
    found = {name: getattr(theirs, name) for name in SAME if hasattr(theirs, name)}
    return found | {"architectures": None} | unsaid(theirs)


def _all_slide(config: Any) -> list[str]:
    return ["sliding_attention"] * config.num_hidden_layers
