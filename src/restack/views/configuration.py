"""A decoder's config as a plan orders it: the layer count, and the settings that are listed layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restack.errors import ViewError

# Settings with one entry a layer, by name: a list of the same length may be something else (`eos_token_id`).
PER_LAYER = (
    "activation_sparsity_pattern",
    "attention_layers",
    "indexer_types",
    "intermediate_size",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "layers_num_experts",
    "mlp_layer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
)
# Settings that tie layers to each other by their place; a view would break them without a word.
PLACE_BOUND = (
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
    "kv_source_layers",
    "_heterogeneity_spec",
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a plan changes in a config."""

    settings: Mapping[str, Any]
    config_class: type

    def inverse(self, config: Any) -> "Change":
        """The change that brings back what `config` says now."""
        return Change({name: vars(config)[name] for name in self.settings}, type(config))

    def apply(self, config: Any) -> None:
        """Change `config` in place."""
        config.__class__ = self.config_class
        # Not setattr: a strict config checks each setting against the others, which are still of the old length.
        vars(config).update(self.settings)


def change(config: Any, order: Sequence[int]) -> Change:
    """How `config` must change for a model that visits layers in this order.

    Some configs compute a per-layer list from a rule ("every fourth layer attends"). The rule does not hold in
    the new order, so the list is frozen in a subclass of the config.

    Raises:
        ViewError: the config ties layers to each other by their place.
    """
    for name in PLACE_BOUND:
        if getattr(config, name, None):
            raise ViewError(
                f"{config.model_type} ties its layers together by place ({name}); views of it are not supported"
            )
    count = config.num_hidden_layers
    settings: dict[str, Any] = {_stored_name(config, "num_hidden_layers"): len(order)}
    frozen: dict[str, property] = {}
    for name in PER_LAYER:
        value = getattr(config, name, None)
        if not isinstance(value, list | tuple) or len(value) != count:
            continue
        remapped = type(value)([value[layer] for layer in order])
        if isinstance(getattr(type(config), name, None), property):
            frozen[name] = property(lambda _, remapped=remapped: remapped)
        else:
            settings[_stored_name(config, name)] = remapped
    cls = type(type(config).__name__, (type(config),), frozen) if frozen else type(config)
    return Change(settings, cls)


def _stored_name(config: Any, name: str) -> str:
    stored = config.attribute_map.get(name, name)
    if stored not in vars(config):
        raise ViewError(
            f"{config.model_type} computes {name} instead of storing it; views do not know how to set it"
        )
    return str(stored)
