"""Decoding over a static KV cache, the steps of which transformers compiles on a GPU (into CUDA graphs).

Asked for as in transformers: `model.generation_config.cache_implementation = "static"`. Graphs are bound to
the memory they were made for, so static caches are kept for the next texts; prompt caches stay dynamic ones,
from which a text's beginning is copied and to which all of it is.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from restack.views.empty_slot import EmptySlot

LEAST = 1024  # tokens that a static cache has room for; longer texts get twice as many, or four times...

_free: Any = WeakKeyDictionary()  # of each model, the static caches that no text is in, by texts and room


def is_static(model: Any) -> bool:
    """Whether a model is asked to decode over static caches."""
    return bool(model.generation_config.cache_implementation == "static")


@contextmanager
def in_static_memory(model: Any, cache: Any, texts: int, tokens: int) -> Iterator[Any]:
    """A static cache with what a dynamic one holds, to which in the end all is given back.

    Args:
        model: whose keys and values they are.
        cache: of transformers; if it is not a plain dynamic one, or holds other things than keys and values,
            it is given itself.
        texts: how many there are.
        tokens: that a text may have.
    """
    if not (is_static(model) and _is_plain(cache)):
        yield cache
        return
    room = _room(tokens)
    free = _free.setdefault(model, defaultdict(list))[texts, room]
    static = free.pop() if free else _new(model, room)
    if static is None:
        yield cache
        return
    try:
        for kept, slot in zip(static.layers, cache.layers, strict=False):
            _fill(kept, slot)
        yield static
    finally:
        for number, kept in enumerate(static.layers):
            _give_back(cache, number, kept)
        static.reset()
        free.append(static)


def _is_plain(cache: Any) -> bool:
    return type(cache) is DynamicCache and not cache.offloading and all(map(_is_known, cache.layers))


def _is_known(slot: Any) -> bool:
    """Whether a slot is of a class that is copied, or of a view's that lends what such a one keeps."""
    if isinstance(slot, EmptySlot):
        return True
    kind = next(kind for kind in type(slot).__mro__ if kind.__module__ == DynamicLayer.__module__)
    return kind in (DynamicLayer, DynamicSlidingWindowLayer)


def _room(tokens: int) -> int:
    """How many tokens a static cache has room for that is to hold so many."""
    room = LEAST
    while room < tokens:
        room *= 2
    return room


def _new(model: Any, room: int) -> StaticCache | None:
    """A static cache with nothing in it; None where one of this model keeps other things too."""
    made = StaticCache(config=model.config, max_cache_len=room)
    has_others = any(type(slot) not in (StaticLayer, StaticSlidingWindowLayer) for slot in made.layers)
    return None if has_others else made


def _fill(kept: Any, slot: Any) -> None:
    """Copy what a dynamic slot holds into an empty static one."""
    if isinstance(slot, EmptySlot) or not slot.is_initialized or isinstance(kept, EmptySlot):
        return
    if not kept.is_initialized:
        kept.lazy_initialization(slot.keys, slot.values)
    length = slot.get_seq_length()
    last = min(length, kept.max_cache_len)
    place = slice(last - slot.keys.shape[2], last)  # a window lacks its oldest token, which goes out next
    kept.keys[:, :, place], kept.values[:, :, place] = slot.keys, slot.values
    kept.cumulative_length.fill_(length)
    if kept.is_sliding:
        kept.cumulative_length_int = length


def _give_back(cache: DynamicCache, number: int, kept: Any) -> None:
    """Leave in a slot of a dynamic cache what it would hold, had it been used all the time."""
    if isinstance(kept, EmptySlot) or not kept.is_initialized:
        return
    slot: Any = cache.layers[number]
    if not slot.is_initialized:
        slot.lazy_initialization(kept.keys, kept.values)
    length = int(kept.get_seq_length())
    last = min(length, kept.max_cache_len)
    first = 0
    if slot.is_sliding:
        first = max(0, last - slot.sliding_window + 1)
        slot.cumulative_length = length
    slot.keys = kept.keys[:, :, first:last].clone()
    slot.values = kept.values[:, :, first:last].clone()
