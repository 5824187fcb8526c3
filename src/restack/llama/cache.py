"""Reading keys and values out of transformers' caches before those of the current tokens are final.

A step that reads ahead sees what the cache holds of the past, and of the tokens of this forward what an
earlier pass left. Neither may enter the cache: only the last pass's keys and values do, by `Cache.update`.
"""

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticLayer, StaticSlidingWindowLayer

from restack.errors import ViewError
from restack.llama.sinks import SinkLayer

KeysValues = tuple[torch.Tensor, torch.Tensor]  # (B, nh_kv, S, hs) each


def grow(cache: Cache, slots: int) -> None:
    """Give a cache that was made by the number of layers, and is still empty, a slot for each owner.

    Raises:
        ViewError: it has too few slots, and cannot grow.
    """
    layers = cache.layers
    if cache.layer_class_to_replicate is not None or len(layers) >= slots:
        return
    if not layers or any(layer.is_initialized for layer in layers):
        raise ViewError(
            f"the cache has {len(layers)} slots and this model needs {slots}; make it with its config"
        )
    layers += [copy.deepcopy(layers[-1]) for _ in range(slots - len(layers))]


def past(cache: Cache, slot: int, tokens: int) -> KeysValues | None:
    """The keys and values of the tokens before the current ones; None if there are none yet.

    They stand where the mask for `tokens` new tokens has its first columns. Static slots give all of their
    room, whose unused part that mask hides.
    """
    layer = _resident(cache, slot)
    if layer is None or not layer.is_initialized:
        return None
    if isinstance(layer, StaticSlidingWindowLayer):
        return _of_window(layer, layer.keys, tokens), _of_window(layer, layer.values, tokens)
    if hasattr(layer, "_quantized_keys"):
        return _dequantized(layer)
    if isinstance(layer, SinkLayer):
        return layer.kept() if layer.get_seq_length() else None
    return (layer.keys, layer.values) if isinstance(layer, StaticLayer) or layer.get_seq_length() else None


def with_estimate(cache: Cache, slot: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
    """What `cache.update` would give back for new keys and values, (B, nh_kv, T, hs); nothing is kept."""
    layer = _resident(cache, slot)
    if layer is None:
        return keys, values
    if not isinstance(layer, StaticLayer):  # these make new tensors, and leave the old ones as they are
        return copy.copy(layer).update(keys, values)  # type: ignore[no-any-return]
    if not layer.is_initialized:  # they are all there is: no need to look at all the room
        return keys, values
    tokens = keys.shape[-2]
    if (
        isinstance(layer, StaticSlidingWindowLayer)
        and layer.cumulative_length_int + tokens > layer.max_cache_len
    ):
        before = _of_window(layer, layer.keys, tokens), _of_window(layer, layer.values, tokens)
        return torch.cat([before[0], keys], dim=-2), torch.cat([before[1], values], dim=-2)
    places = torch.arange(tokens, device=keys.device) + layer.cumulative_length
    layer.keys.index_copy_(2, places, keys)  # where the final ones will be written over them
    layer.values.index_copy_(2, places, values)
    return layer.keys, layer.values


def _resident(cache: Cache, slot: int) -> Any:
    """The slot, its tensors on the device if they are offloaded; None if the cache has not grown to it."""
    if slot >= len(cache.layers):
        return None
    layer = cache.layers[slot]
    if cache.offloading and layer.is_initialized:
        torch.cuda.default_stream(layer.device).wait_stream(cache.prefetch_stream)
        layer.prefetch()
    return layer


def _of_window(layer: Any, kept: torch.Tensor, tokens: int) -> torch.Tensor:
    """What a static window keeps of the past, as its `update` lays it out before `tokens` new ones."""
    if layer.cumulative_length_int >= layer.max_cache_len:
        return kept[:, :, 1:]
    if layer.cumulative_length_int + tokens > layer.max_cache_len:
        return kept[:, :, : layer.cumulative_length_int]
    return kept


def _dequantized(layer: Any) -> KeysValues:
    keys, values = layer._dequantize(layer._quantized_keys), layer._dequantize(layer._quantized_values)
    if getattr(layer, "_pending_beam_idx", None) is not None:
        keys, values = layer._apply_pending_reorder(keys, values)
    if layer.keys.dim() == 4:  # the latest, not quantised yet
        keys, values = torch.cat([keys, layer.keys], dim=-2), torch.cat([values, layer.values], dim=-2)
    return keys, values
