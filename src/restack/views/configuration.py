"""What a decoder's config says of its layers: how many, and the settings that are listed layer by layer."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from restack.errors import ViewError
from restack.views.frozen_config import FROZEN, freezing

COUNT = "num_hidden_layers"
COUNTS = (COUNT, "decoder_layers", "num_decoder_layers")  # what was an encoder-decoder may have them all
# Settings with one entry a layer, by name: a list of the same length may be something else (`eos_token_id`).
PER_LAYER = (
    "activation_sparsity_pattern",
    "attention_layers",
    "indexer_types",
    "intermediate_size",
    "kv_sharing_modes",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "layers_num_experts",
    "mlp_layer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "swiglu_limits",
    "swiglu_limits_shared",
)
# Settings that list the layers of one kind.
LAYER_LISTS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "rope_scaling_layers",
)
# Settings that tie layers to each other by their place; a view would break them without a word.
PLACE_BOUND = ("kv_source_layers", "cross_layer_interval")
REUSING = "num_kv_shared_layers"  # how many layers at the end read keys and values of others
OVERRIDES = "_heterogeneity_spec"  # holds {layer: its own values of some settings}


class ABSENT:
    """In place of the value of a setting that a config does not have."""


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """All that a config says of its layers, to be put into effect or back."""

    config_class: type
    values: Mapping[str, Any]  # by the name they are stored under; ABSENT where there is no such setting

    @classmethod
    def of(cls, config: Any) -> "LayerSettings":
        """What `config` says now."""
        names = {_stored_name(config, name) for name in (*COUNTS, *PER_LAYER, *LAYER_LISTS)}
        names |= {FROZEN, REUSING, OVERRIDES}
        return cls(type(config), {name: vars(config).get(name, ABSENT) for name in names})

    def apply(self, config: Any) -> None:
        """Make `config` say this."""
        config.__class__ = self.config_class
        for name, value in self.values.items():
            # Not setattr: a strict config checks a setting against others, which are still of the old length.
            if value is ABSENT:
                vars(config).pop(name, None)
            else:
                vars(config)[name] = value


def reordered(config: Any, order: Sequence[int]) -> LayerSettings:
    """What `config` must say for a model that visits its layers in this order.

    Some configs compute a list from a rule ("every fourth layer attends"). Where the rule does not hold in
    the new order, the list is frozen.

    Raises:
        ViewError: the config ties layers to each other by their place, or the order leaves out all
            attention of a model whose cache needs it.
    """
    for name in (*PLACE_BOUND, *([] if hasattr(config, "kv_sharing_modes") else [REUSING])):
        if _setting(config, name):
            raise ViewError(
                f"{config.model_type} ties its layers together by place ({name}); views cannot reorder them"
            )
    if hasattr(config, "rescale_every"):  # RWKV, whose first layer also has a norm that no other has
        raise ViewError(
            f"{config.model_type} rescales its weights in place, by the number of their layer, when it runs "
            "(rescale_every); a view would spoil those of the base"
        )
    return _saying(config, _wanted(config, order))


def concatenated(config: Any, parts: Sequence[Any]) -> LayerSettings:
    """What `config` must say for a model that has the layers of all these configs, one after the other.

    Raises:
        ViewError: they tie layers to each other, or describe some apart, in a way that cannot be joined.
    """
    wanted: dict[str, Any] = {}
    depth = 0
    for part in parts:
        own = _wanted(part, range(part.num_hidden_layers))
        for name in (REUSING, "hidden_size_per_layer_input", OVERRIDES):
            if vars(part).get(name):
                raise ViewError(
                    f"{part.model_type} prepares its layers by their place ({name.strip('_')}); such "
                    "models cannot lend each other layers"
                )
        for name, value in own.items():
            if isinstance(value, int):
                wanted[name] = wanted.get(name, 0) + value
            elif name in LAYER_LISTS:
                wanted[name] = [*wanted.get(name, []), *(depth + layer for layer in value)]
            else:
                wanted[name] = type(value)([*wanted.get(name, []), *value])
        depth += part.num_hidden_layers
    for name, value in wanted.items():
        if name not in LAYER_LISTS and not isinstance(value, int) and len(value) != depth:
            raise ViewError(f"{name} lists the layers of some of the models only; set it in all configs")
    return _saying(config, wanted)


def _saying(config: Any, wanted: Mapping[str, Any]) -> LayerSettings:
    """The settings by which `config` says what is wanted, frozen where a rule of its own says another."""
    now = LayerSettings.of(config)
    stored = {name: value for name, value in wanted.items() if now.values[name] is not ABSENT}
    by_rule = LayerSettings(now.config_class, {**now.values, **stored, FROZEN: ABSENT})
    trial = copy.copy(config)
    by_rule.apply(trial)
    broken = {name: value for name, value in wanted.items() if _setting(trial, name) != value}
    if not broken:
        return by_rule
    return LayerSettings(freezing(now.config_class), {**by_rule.values, FROZEN: broken})


def refuse_tables(config: Any, modules: Iterable[nn.Module]) -> None:
    """Refuse a decoder that keeps, in these modules outside its layers, what its layers are, one by one.

    Raises:
        ViewError: a module holds a setting of the config that lists layers, or a list as long as the layers.
    """
    settings = [vars(config).get(_stored_name(config, name)) for name in (*PER_LAYER, *LAYER_LISTS)]
    tables = {id(value) for value in settings if value and isinstance(value, list | tuple | dict | set)}
    for module in modules:
        for name, value in vars(module).items():
            if id(value) in tables or _is_table(name, value, config.num_hidden_layers):
                raise ViewError(
                    f"{type(module).__name__} keeps a table of the layers ({name}) outside of them; views "
                    "cannot reorder it"
                )


def _is_table(name: str, value: Any, count: int) -> bool:
    if name.startswith("_") or not isinstance(value, list) or len(value) != count:
        return False  # a tuple is a shape or the like
    if name == "layer_types" and len(set(value)) == count:  # of a rotary embedding: the kinds there are
        return False
    return all(item is None or isinstance(item, int | float | str) for item in value)


def _wanted(config: Any, order: Sequence[int]) -> dict[str, Any]:
    """The layer count and the settings of each layer in the new order, by the name they are stored under."""
    counts = [name for name in COUNTS if _setting(config, name) == config.num_hidden_layers]
    wanted: dict[str, Any] = {_stored_name(config, name): len(order) for name in counts}
    for name in PER_LAYER:
        value = _setting(config, name)
        if isinstance(value, list | tuple) and value:
            if len(value) != config.num_hidden_layers:
                raise ViewError(
                    f"{config.model_type}'s {name} has {len(value)} entries for {config.num_hidden_layers} "
                    "layers; views cannot tell which belong to which"
                )
            entries = [value[layer] for layer in order]
            if name == "layer_types" and attends(value) and not attends(entries):
                raise ViewError(
                    f"the plan visits no attention layer, and {config.model_type}'s cache needs one; visit "
                    f"at least one of {[layer for layer, kind in enumerate(value) if attends([kind])]}"
                )
            wanted[_stored_name(config, name)] = type(value)(entries)
    for name in LAYER_LISTS:
        value = vars(config).get(name)
        if value:
            wanted[name] = [visit for visit, layer in enumerate(order) if layer in value]
    if vars(config).get(REUSING):
        _refuse_readers_without_source(config, order, "kv_sharing_modes", "store", "reuse")
        modes = wanted["kv_sharing_modes"]
        wanted[REUSING] = next((n for n, mode in enumerate(reversed(modes)) if mode != "reuse"), len(modes))
    if "indexer_types" in wanted:
        _refuse_readers_without_source(config, order, "indexer_types", "full", "shared")
    if own := vars(config).get(OVERRIDES):
        overrides = own.per_layer_overrides
        moved = {visit: overrides[layer] for visit, layer in enumerate(order) if layer in overrides}
        wanted[OVERRIDES] = dataclasses.replace(own, per_layer_overrides=moved)
    return wanted


def _refuse_readers_without_source(
    config: Any, order: Sequence[int], setting: str, source: str, reader: str
) -> None:
    """Refuse an order in which a layer reads what no visit before it has kept for layers of its kind."""
    roles = getattr(config, setting)
    kinds = _setting(config, "layer_types") or [None] * len(roles)
    kept = set()
    for visit, layer in enumerate(order):
        if roles[layer] == source:
            kept.add(kinds[layer])
        elif roles[layer] == reader and kinds[layer] not in kept:
            sources = [n for n, role in enumerate(roles) if role == source and kinds[n] == kinds[layer]]
            raise ViewError(
                f"visit {visit} is of layer {layer}, which reads what another layer keeps for it ({setting} "
                f"of {config.model_type}); visit {' or '.join(map(str, sources))} before"
            )


def _setting(config: Any, name: str) -> Any:
    """What a config says of itself; None if it has no such setting, or none for all of its layers."""
    try:
        return getattr(config, name, None)
    except (RuntimeError, ValueError):  # each layer has its own; or they contradict each other
        return None


def attends(kinds: Sequence[str]) -> bool:
    """Whether layers of these kinds keep keys and values: any attention that is not linear."""
    return any(kind == "hybrid" or ("attention" in kind and "linear" not in kind) for kind in kinds)


def _stored_name(config: Any, name: str) -> str:
    return str(config.attribute_map.get(name, name))
