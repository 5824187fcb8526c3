"""restack-llama as a model that vLLM has: the relative of Llama's with the same layers."""

from dataclasses import replace
from typing import Any

from restack.errors import ModelError, ViewError
from restack.llama.families import relative
from restack.llama.schedule import schedule
from restack.plans import own_plan
from restack.recipes.following import Found

PASSES, NODIAG = (
    "restack_passes",
    "restack_force_nodiag",
)  # in the config, as `iterate` and `schedule` have them
OF_THE_TEXT = ("dynamic", "longrope")  # rotary embeddings that are scaled for the text at hand
HERE = "restack serve runs this model"


def as_relative(found: Found, transformers_backend: bool) -> tuple[Found, dict[str, Any]]:
    """A restack-llama as its relative, and its own plan before that of the spec; other models as they are.

    Returns:
        The model; and, where visits do not see their own token, what the config is to say of that.

    Raises:
        ModelError: there is no such relative, or it is another model in vLLM's classes.
        ViewError: the layers cannot run the plan.
    """
    house = found.ready().config  # a restack-llama too where visits read from above
    own = own_plan(house)
    if own is None:
        return found, {}
    plan = own if found.plan is None else own.then(found.plan)
    if without := schedule(plan).layers_with_kv - schedule(own).layers_with_kv:
        raise ViewError(
            f"the plan reads keys and values of layer {min(without)}, for which {found.called} has no "
            "weights; let those visits read others"
        )
    iteration: dict[str, Any] = {}
    if any(owner > number for number, owner in enumerate(plan.owners)):
        iteration[PASSES] = None if house.use_sequential else house.forward_passes + house.backward_passes
    if house.force_nodiag:
        iteration[NODIAG] = True
    config = _relative(found, transformers_backend) if house is found.config else found.config
    return replace(found, config=config, plan=plan), iteration


def _relative(found: Found, transformers_backend: bool) -> Any:
    kind = found.config.rope_parameters["rope_type"]
    if kind in OF_THE_TEXT:
        raise ModelError(
            f"{found.called} has the rotary embedding {kind}, which vLLM scales for the longest text that "
            f"may come and not for the one at hand; {HERE}"
        )
    try:
        config = relative(found.config)
    except ModelError as error:
        raise ModelError(f"{found.called}: {error}, and vLLM runs those; {HERE}") from None
    if not transformers_backend and (wrong := _otherwise_in_vllm(config)):
        raise ModelError(f"{found.called} has {wrong}; run transformers' class of it (--transformers)")
    return config


def _otherwise_in_vllm(config: Any) -> str | None:
    """What vLLM's own class of a relative does not have as transformers' has it."""
    if config.model_type == "qwen3" and config.attention_bias:
        return "a bias behind its attention, where vLLM's Qwen 3 has none"
    if config.model_type == "qwen2" and config.head_dim * config.num_attention_heads != config.hidden_size:
        return f"heads of {config.head_dim}, where those of vLLM's Qwen 2 are parts of the width"
    return None
