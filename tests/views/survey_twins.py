"""The twins of the survey's models: what a view of each must equal.

A twin is built by the architecture's own constructor from a config that this file writes for the new order,
and gets copies of the base's weights by name. Nothing here comes from Restack.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tests.views.architectures import copy_weights
from tests.views.survey_models import DEPTH, KINDS, LAYERS, config_class, constructed, settings

# Settings with one entry a layer, and settings that list layers: given to the constructor, or computed by it.
LISTED = (
    *KINDS, "intermediate_size", "kv_sharing_modes", "layers_num_experts", "swiglu_limits",
    "swiglu_limits_shared",
)  # fmt: skip
INDICES = (
    "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "mlp_only_layers", "moe_layers",
    "cross_attention_layers", "rope_scaling_layers",
)  # fmt: skip
# Settings of the twin that are said otherwise than by a list under the same name.


def _readers_at_the_end(order: Sequence[int]) -> dict[str, Any]:
    """Gemma: layers 2 and 3 read keys and values of 0 and 1; full attention has heads of its own width."""
    own = [layer in (0, 1) for layer in order]
    return {
        "num_kv_shared_layers": len(order) - 1 - max(visit for visit, is_own in enumerate(own) if is_own),
        "per_layer_config": {visit: {"head_dim": 16} for visit, layer in enumerate(order) if layer % 2},
    }


OTHERWISE: dict[str, Callable[[Sequence[int]], dict[str, Any]]] = {
    "gpt_neo": lambda order: {"attention_types": [[["global" if i % 2 == 0 else "local"], 1] for i in order]},
    "gemma3n_text": lambda order: {
        "num_kv_shared_layers": _readers_at_the_end(order)["num_kv_shared_layers"]
    },
    "gemma4_text": _readers_at_the_end,
    "gemma4_unified_text": _readers_at_the_end,
    "reformer": lambda order: {"attn_layers": ["local" for _ in order]},
}
# Weights outside the layers that have a part for each.
PACKED = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
# What a constructor gives a layer by its place, and a view leaves as it is: {model type: attributes}.
# The twin is given the base's, or it would be another model.
BAKED: dict[str, tuple[str, ...]] = {
    "beam": ("attn_residual_add_idx", "mlp_residual_add_idx"),
    "diffllama": ("self_attn.lambda_init",),
    "gpt2": ("attn.scaling",),  # with scale_attn_by_inverse_layer_idx
    "gpt_neox_japanese": ("attention.dense_bias",),
    "inkling2_text": ("attention_input", "mlp_input", "is_block_boundary"),
    "minicpm3": ("residual_scale",),
    "modernbert-decoder": ("attn_norm",),
    "zaya": ("mlp.gate.use_eda", "mlp.gate.router_states_scale"),
}


def layer_list(model: nn.Module) -> str:
    """The path of the decoder's layers; an encoder beside it has fewer."""
    for path, module in model.named_modules():
        named = path.rpartition(".")[2] in ("layers", "layer", "h", "blocks")
        if named and isinstance(module, nn.ModuleList) and len(module) == DEPTH:
            return path
    raise LookupError(type(model).__name__)


def twin_config(model_type: str, config: Any, order: Sequence[int]) -> Any:
    """The config of the model that visits its layers in this order, written for its constructor."""
    made_by = config_class(model_type)
    names = inspect.signature(made_by).parameters
    listed: dict[str, Any] = {}
    for name in LISTED:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and len(value) == DEPTH:
            listed[name] = [value[layer] for layer in order]
    for name in INDICES:
        value = getattr(config, name, None)
        if value:
            listed[name] = [visit for visit, layer in enumerate(order) if layer in value]
    otherwise = OTHERWISE.get(model_type, lambda order: {})(order)
    given = settings(model_type)
    given |= {name: len(order) for name in LAYERS.split() if name in given}
    given |= {name: value for name, value in listed.items() if name in names} | otherwise
    ruled = {
        name: value for name, value in listed.items() if isinstance(getattr(made_by, name, None), property)
    }
    if ruled:  # the rule does not hold in the new order
        made_by = type(made_by.__name__, (made_by,), {name: _always(value) for name, value in ruled.items()})
    twin = made_by(**given)
    for name, value in listed.items():
        if name in vars(twin):  # Gemma 4 would have the last layer attend to everything
            vars(twin)[name] = value
        assert list(getattr(twin, name)) == value, (name, getattr(twin, name), value)
    return twin


def _always(value: Any) -> property:
    return property(lambda self: value, lambda self, new: None)


def twin(model_type: str, base: nn.Module, order: Sequence[int], *, baked: bool = True) -> nn.Module:
    """What `base` becomes in this order, by its own constructor and copied weights.

    `baked`: give its layers what a constructor bakes into them by their place, as the base's have it.
    """
    made = constructed(model_type, twin_config(model_type, base.config, order))
    path = layer_list(base)
    for name in BAKED.get(model_type, ()) if baked else ():
        inside, _, attribute = name.rpartition(".")
        for visit, layer in enumerate(order):
            source = base.get_submodule(f"{path}.{layer}.{inside}".rstrip("."))
            target = made.get_submodule(f"{path}.{visit}.{inside}".rstrip("."))
            if hasattr(source, attribute):
                setattr(target, attribute, copy.deepcopy(getattr(source, attribute)))
            elif hasattr(target, attribute):
                delattr(target, attribute)
    copy_weights(base, made, path, order, PACKED)
    return made
