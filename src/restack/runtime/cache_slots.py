"""The slots of a KV cache: how much they hold, and how they are cut, copied, stored and restored."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from restack.errors import UsageError
from restack.views.empty_slot import EmptySlot


def tokens_of(slot: Any) -> int:
    """How many tokens a slot has read; 0 for states that do not tell."""
    if isinstance(slot, EmptySlot):  # which need not tell, in some versions of transformers
        return 0
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
        if tokens_of(slot):
            slot.crop(-tokens)


def level(cache: DynamicCache) -> int:
    """How many tokens all slots hold, after those were taken out that only some do; 0 if they cannot be.

    An interrupt may have come between any two of the slots, or of the tensors of one.
    """
    counts = [count for slot in cache.layers for count in _counts(slot)]
    least = min(counts, default=0)
    if max(counts, default=0) == least:
        return least
    if not tells_an_interrupt(cache):
        return 0
    for slot in cache.layers:
        if tokens_of(slot):
            slot.keys, slot.values = slot.keys[:, :, :least], slot.values[:, :, :least]
        if type(slot) is DynamicSlidingWindowLayer:
            slot.cumulative_length = min(slot.cumulative_length, least)
    return least


def tells_an_interrupt(cache: DynamicCache) -> bool:
    """Whether the lengths of all tensors tell how far a forward came: not those of a window that is full."""
    windows = (slot for slot in cache.layers if type(slot) is DynamicSlidingWindowLayer)
    return is_plain(cache) and all(max(_counts(slot), default=0) < slot.sliding_window for slot in windows)


def _counts(slot: Any) -> list[int]:
    """How many tokens a slot has read, as each of its tensors tells it."""
    if not tokens_of(slot):
        return []
    if type(slot) is DynamicLayer:
        return [slot.keys.shape[-2], slot.values.shape[-2]]
    if type(slot) is DynamicSlidingWindowLayer and slot.cumulative_length < slot.sliding_window:
        return [slot.cumulative_length, slot.keys.shape[-2], slot.values.shape[-2]]
    return [tokens_of(slot)]


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
        if tokens_of(slot)
        for name in ("keys", "values")
    }


def restored(cache: DynamicCache, tensors: Mapping[str, torch.Tensor], tokens: int) -> None:
    """Fill a cache with the keys and values of so many tokens, that `stored` gave.

    Args:
        cache: of the model, that has read a token.
        tensors: by name.
        tokens: how many.

    Raises:
        ValueError: they are not of this model, or of other tokens.
    """
    own = stored(cache)
    if own.keys() != tensors.keys():
        raise ValueError("its keys and values are those of another model")
    for name, sample in own.items():
        number, _, which = name.partition(".")
        slot, tensor = cache.layers[int(number)], tensors[name]
        length = tokens
        if type(slot) is DynamicSlidingWindowLayer:
            length = min(tokens, slot.sliding_window - 1)
            slot.cumulative_length = tokens
        if tensor.dtype != sample.dtype or tensor.shape != (*sample.shape[:2], length, sample.shape[3]):
            raise ValueError(f"{name} is not what the model keeps of {tokens} tokens")
        setattr(slot, which, tensor.to(sample.device))


def _is_croppable(slot: Any) -> bool:
    if not tokens_of(slot):
        return not any(True for _ in tensors_of(slot))  # a recurrent state
    if type(slot) is DynamicSlidingWindowLayer:
        return bool(slot.get_seq_length() < slot.sliding_window)
    return isinstance(slot, DynamicLayer) and type(slot).crop is DynamicLayer.crop
