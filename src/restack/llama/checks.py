"""The settings of a config, one by one and against each other: wrong ones are told in a line."""

import math
from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from restack.errors import ModelError
from restack.plans.pointing import shown

COUNTS = {  # whole numbers, and the least of each
    "vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1, "max_position_embeddings": 1,
    "forward_passes": 0, "backward_passes": 1,
}  # fmt: skip
SWITCHES = (
    "attention_bias", "force_nodiag", "mlp_bias", "qk_norm", "tie_word_embeddings", "use_cache",
    "use_sequential",
)  # fmt: skip
FACTORS = {  # what a scaled rotary embedding cannot do without
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}


def refuse_wrong_values(config: Any) -> None:
    """Refuse values that no model can have.

    Raises:
        ModelError: naming key, value and constraint.
    """
    for name, least in COUNTS.items():
        whole(name, getattr(config, name), least)
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ModelError(f"{name} is {shown(getattr(config, name))}; write true or false")
    if config.sliding_window is not None:
        whole("sliding_window", config.sliding_window, 2)
    if config.attention_out_bias not in (None, True, False):
        raise ModelError(
            f"attention_out_bias is {shown(config.attention_out_bias)}; write true, false or null"
        )
    _number("rms_norm_eps", config.rms_norm_eps, above=0)
    _number("initializer_range", config.initializer_range, least=0)
    _number("attention_dropout", config.attention_dropout, least=0, below=1)
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACT2FN:
        raise ModelError(
            f"hidden_act is {shown(config.hidden_act)}; write one of {', '.join(sorted(ACT2FN))}"
        )
    pad, size = config.pad_token_id, config.vocab_size
    if pad is not None and (not isinstance(pad, int) or not -size <= pad < size):
        raise ModelError(f"pad_token_id is {shown(pad)}; write null or a token from 0 to {size - 1}")


def refuse_wrong_rotary(rope: Any, head_dim: int) -> None:
    """Refuse parameters of a rotary embedding that lack something, or make angles that are no numbers.

    Raises:
        ModelError: naming key, value and constraint.
    """
    if "rope_type" not in rope:
        raise ModelError('rope_parameters have no rope_type; write one for all layers, such as "default"')
    kind = rope["rope_type"].lower()
    _number("rope_theta", rope.get("rope_theta"), above=0)
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ModelError("partial_rotary_factor is set; this model rotates whole heads, leave it out")
    for name in FACTORS.get(kind, ()):
        if name not in rope:
            raise ModelError(f"rope_parameters of the type {kind} lack {name}; write a number above 0")
        _number(name, rope[name], above=0)
    if "original_max_position_embeddings" in rope:
        whole("original_max_position_embeddings", rope["original_max_position_embeddings"], 1)
    if kind == "dynamic" and head_dim == 2:
        raise ModelError("head_dim is 2; the base of dynamic NTK needs at least 4")
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            is_list = isinstance(factors, list) and len(factors) == head_dim // 2
            if not is_list or not all(isinstance(factor, int | float) for factor in factors):
                raise ModelError(
                    f"{name} of rope_parameters is {shown(factors)}; longrope needs a list of "
                    f"{head_dim // 2} numbers, one for each pair of a head"
                )


def refuse_no_parameters(name: str, value: Any) -> None:
    """Refuse what should be a mapping and is none."""
    if value is not None and not isinstance(value, Mapping):
        raise ModelError(
            f'{name} is {shown(value)}; write an object as in {{"rope_type": "linear", "factor": 2}}'
        )


def refuse_contradictions(config: Any) -> None:
    """Refuse settings that do not go with each other.

    Raises:
        ModelError: naming key, value and constraint.
        PlanError: the plan is none for so many layers.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelError(
            f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, which is {kv_heads}"
        )
    expected = {"mha": heads, "mqa": 1}.get((config.attention or "").lower(), kv_heads)
    if kv_heads != expected:
        raise ModelError(
            f"num_key_value_heads is {kv_heads}, and attention {config.attention!r} has {expected}"
        )
    if config.head_dim % 2:
        raise ModelError(f"head_dim is {config.head_dim}; rotary embeddings need an even one")
    for number, visit in enumerate(config.whole_plan.visits):
        if visit.sliding and config.sliding_window is None:
            raise ModelError(f"visit {number} slides (s in the KV map), and sliding_window is None; set it")
        if visit.scale:
            raise ModelError(
                f"visit {number} of the plan scales tensors, which a config cannot say: layers are stored "
                "once; make a view that does (restack.view), or store what it makes (restack.materialise)"
            )


def whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number from `least` on.

    Raises:
        ModelError: naming key, value and constraint.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(f"{name} is {shown(value)}; write a whole number from {least}")


def _number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and least <= value and above < value < below:
        return
    bounds = [f"from {least:g}"] if least > -math.inf else [f"above {above:g}"]
    bounds += [f"below {below:g}"] if below < math.inf else []
    raise ModelError(f"{name} is {shown(value)}; write a number {' and '.join(bounds)}")
