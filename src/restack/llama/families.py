"""The configs of Llama's relatives, said as ours, and ours as theirs: Llama, Mistral, Qwen2, Qwen3."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
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


def relative(config: Any) -> Any:
    """The config of the relative that has the same layers as a restack-llama, in the order of their storage.

    Raises:
        ModelError: none has.
    """
    if config.attention not in (None, "mha", "gqa", "mqa"):
        raise ModelError(f"no relative of Llama has the attention {config.attention}")
    if config.rope_parameters["rope_type"] not in (*ROPE_INIT_FUNCTIONS, "default"):
        raise ModelError(
            f"no relative of Llama has the rotary embedding {config.rope_parameters['rope_type']}"
        )
    out_bias = config.attention_bias if config.attention_out_bias is None else config.attention_out_bias
    is_even = out_bias == config.attention_bias
    if is_even and not config.qk_norm:
        kind = "llama"
    elif is_even and not config.mlp_bias:
        kind = "qwen3"
    elif config.attention_bias and not config.qk_norm and not config.mlp_bias:
        kind = "qwen2"
    else:
        raise ModelError("no relative of Llama has biases, and norms of queries and keys, in these places")
    of_kind, _ = FAMILIES[kind]
    said = {name: getattr(config, name) for name in SAME if hasattr(config, name)}
    architecture = of_kind.__name__.replace("Config", "ForCausalLM")
    return of_kind(**said | {"architectures": [architecture], "sliding_window": None})


def _all_slide(config: Any) -> list[str]:
    return ["sliding_attention"] * config.num_hidden_layers
