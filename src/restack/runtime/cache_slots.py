"""The slots of a KV cache: how much they hold, and how they are cut, copied, stored and restored."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from restack.errors import UsageError
from restack.views.empty_slot import EmptySlot


def held_by(slot: Any) -> int:
    """How many tokens a slot has read; 0 for states that do not tell."""
    return int(slot.get_seq_length()) if getattr(slot, "is_initialized", False) else 0


def tensors_of(slot: Any) -> Iterator[torch.Tensor]:
    """The tensors of a slot."""
    for value in vars(slot).values():
        each = value.values() if isinstance(value, dict) else [value]
        yield from (item for item in each if isinstance(item, torch.Tensor))


def is_plain(cache: DynamicCache) -> bool:
    """Whether there are keys and values alone, which are replaced as they grow and never written into."""
    return all(type(slot) in (DynamicLayer, DynamicSlidingWindowLayer, EmptySlot) for slot in cache.layers)


def is_croppable(cache: DynamicCache) -> bool:
    """Whether the last tokens can be taken out of a cache, as if they had never been read."""
    return all(_is_croppable(slot) for slot in cache.layers)


def crop(cache: DynamicCache, tokens: int) -> None:
    """Take the last tokens out of a croppable cache."""
    for slot in cache.layers:
        if held_by(slot):
            slot.crop(-tokens)


def level(cache: DynamicCache) -> int:
    """How many tokens all slots hold, after those were taken out that only some do; 0 if they cannot be."""
    counts = [count for slot in cache.layers if (count := held_by(slot))]
    least = min(counts, default=0)
    for slot in cache.layers:
        if held_by(slot) > least:
            if not _is_croppable(slot):
                return 0
            slot.crop(least - held_by(slot))
    return least


def copied(cache: DynamicCache) -> DynamicCache:
    """A cache that can be read on with apart; tensors are shared where that is safe."""
    if not is_plain(cache):
        return copy.deepcopy(cache)
    result = copy.copy(cache)
    result.layers = [copy.copy(slot) for slot in cache.layers]
    return result


def stored(cache: DynamicCache) -> dict[str, torch.Tensor]:
    """The keys and values of a cache by name.

    Raises:
        UsageError: it holds more than keys and values.
    """
    if not is_plain(cache):
        raise UsageError("this model keeps more than keys and values; store the text alone")
    return {
        f"{number}.{name}": getattr(slot, name).contiguous()
        for number, slot in enumerate(cache.layers)
        if held_by(slot)
        for name in ("keys", "values")
    }


def restored(config: Any, tensors: Mapping[str, torch.Tensor], tokens: int, device: Any) -> DynamicCache:
    """A cache of the keys and values of so many tokens, that `stored` gave.

    Raises:
        ValueError: they are not that.
    """
    cache = DynamicCache(config=config)
    for number in sorted({int(name.partition(".")[0]) for name in tensors}):
        while len(cache.layers) <= number:  # models that run plans have more slots than layers
            cache.layers.append(copy.deepcopy(cache.layers[-1]))
        slot = cache.layers[number]
        keys, values = (tensors[f"{number}.{name}"].to(device) for name in ("keys", "values"))
        is_window = type(slot) is DynamicSlidingWindowLayer
        is_whole = keys.shape[-2] == tokens or (is_window and keys.shape[-2] < tokens)
        if keys.ndim != 4 or keys.shape != values.shape or not is_whole:
            raise ValueError(f"slot {number} does not hold {tokens} tokens")
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
        if is_window:
            slot.cumulative_length = tokens
    return cache


def _is_croppable(slot: Any) -> bool:
    if not held_by(slot):
        return not any(True for _ in tensors_of(slot))  # a recurrent state
    if type(slot) is DynamicSlidingWindowLayer:
        return bool(slot.get_seq_length() < slot.sliding_window)
    return isinstance(slot, DynamicLayer) and type(slot).crop is DynamicLayer.crop
