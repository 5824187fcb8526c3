"""The keys and values of what a model has read, kept for the next text that begins alike."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from restack.errors import ViewError
from restack.runtime import cache_slots
from restack.runtime.static_cache import is_static
from restack.runtime.stretching import stretches
from restack.views.leading import leading_visits
from restack.views.planned import visit_count
from restack.views.recording import recording
from restack.views.resuming import resumable, resume

PARTS = 4  # of a model's visits: what enters each part but the first is kept for other views to go on with


@dataclass(slots=True)
class Reuse:
    """What a prompt need not be read for again.

    Attributes:
        cache: to be read on with; None where the model's kind of cache cannot be kept.
        tokens: how many tokens of the prompt it holds.
        first_visit: from which visit on the model has just read these tokens, where another view had read
            them; None where it has not.
        reason: why it holds no more, where it might have; "" otherwise.
        read: the tokens that are read with it: the prompt, and what is generated after it.
    """

    cache: DynamicCache | None
    tokens: int = 0
    first_visit: int | None = None
    reason: str = ""
    read: list[int] = field(default_factory=list)


class PromptCache:
    """The tokens that a model has read last, with their keys and values.

    The next prompt reuses those of the tokens that it begins with, however it goes on; those after them are
    cropped. Sliding windows that have moved on, and recurrent states, cannot be cropped: such a model reads
    a prompt that does not go on where the last text ended from its beginning.

    Another view of the same weights takes over the keys and values of the visits that it begins with as the
    model before did, and reads only with those after them: from the nearest visit for which the hidden states
    are kept. They are kept for three, evenly spread.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self.model: Any = None
        self.tokens: list[int] = []
        self.cache: DynamicCache | None = None
        self.hidden: Mapping[int, torch.Tensor] = {}  # (1, T, C) by the visit that they entered

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values that are kept, and of recurrent states."""
        slots = () if self.cache is None else self.cache.layers
        return sum(tensor.nbytes for slot in slots for tensor in cache_slots.tensors_of(slot))

    @property
    def bytes(self) -> int:
        """Of all that is kept, hidden states too."""
        return self.kv_bytes + sum(tensor.nbytes for tensor in self.hidden.values())

    def fork(self) -> "PromptCache":
        """Another that holds the same, for a text that goes on differently; what can be shared is."""
        result = copy.copy(self)
        result.cache = None if self.cache is None else cache_slots.copied(self.cache)
        return result

    def stored(self) -> dict[str, torch.Tensor]:
        """What is kept, as tensors by name.

        Raises:
            UsageError: it is more than keys and values.
        """
        slots = {} if self.cache is None else cache_slots.stored(self.cache)
        hidden = {f"hidden.{visit}": tensor.contiguous() for visit, tensor in self.hidden.items()}
        return {"tokens": torch.tensor(self.tokens), **slots, **hidden}

    def restore(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep what `stored` gave, of the same model.

        Raises:
            ValueError: it cannot be that.
        """
        self.forget()
        slots = {
            name: tensor for name, tensor in tensors.items() if not name.startswith(("tokens", "hidden."))
        }
        if not slots:
            return
        config = model.config.get_text_config(decoder=True)
        tokens = tensors["tokens"].flatten().tolist()
        if not all(type(token) is int and 0 <= token < config.vocab_size for token in tokens):
            raise ValueError("its tokens are not the model's")
        cache = DynamicCache(config=config)
        with torch.no_grad(), _recording(model, ()) as recorded:
            model(torch.tensor([tokens[:1]], device=model.device), past_key_values=cache, use_cache=True)
        cache_slots.restored(cache, slots, len(tokens))
        hidden = {visit: tensors.get(f"hidden.{visit}") for visit in recorded}
        shapes = {visit: (1, len(tokens), sample.shape[2]) for visit, sample in recorded.items()}
        self.hidden = {
            visit: tensor.to(model.device)
            for visit, tensor in hidden.items()
            if tensor is not None and tensor.shape == shapes[visit] and tensor.dtype == recorded[visit].dtype
        }
        self.model, self.cache, self.tokens = model, cache, tokens

    @contextmanager
    def reading(self, model: Any, prompt: Sequence[int]) -> Iterator[Reuse]:
        """Give what can be reused for a prompt, and afterwards keep what was read.

        Inside, `Reuse.read` is to be given the tokens that follow the prompt. At the end all that the cache
        holds of them is kept, also where an interrupt came in the middle.
        """
        with _recording(model, self.hidden) as new:
            try:
                reuse = self._ready(model, list(prompt))
            except BaseException:
                self.forget()  # it may have been cropped in part
                raise
            # Of the tokens that are reused: what was kept, but for what another view has just run anew.
            known = {
                visit: hidden[:, : reuse.tokens] for visit, hidden in self.hidden.items() if visit not in new
            }
            reuse.read = list(prompt)
            self.forget()  # what is in doubt until it is over
            try:
                yield reuse
            except KeyboardInterrupt:
                if _is_known(reuse, len(prompt)):
                    self._keep(model, reuse, known, new)
                raise
            else:
                self._keep(model, reuse, known, new)

    def _keep(
        self, model: Any, reuse: Reuse, known: Mapping[int, torch.Tensor], new: Mapping[int, torch.Tensor]
    ) -> None:
        """Keep what was read, as far as the cache holds it; `known` and `new` are hidden states by visit."""
        held = 0 if reuse.cache is None else cache_slots.level(reuse.cache)
        self.model, self.tokens = model, reuse.read
        if not 0 < held <= len(reuse.read):
            return  # there is nothing to read on with, which is to be said
        self.cache, self.tokens = reuse.cache, reuse.read[:held]
        kept = _entrances(model) | {reuse.first_visit}
        self.hidden = {visit: h for visit, h in _joined(known, new, held) if visit in kept}

    def _ready(self, model: Any, prompt: list[int]) -> Reuse:
        """A cache of the beginning of a prompt, but not of its last token: that is read for its logits."""
        config = model.config.get_text_config(decoder=True)
        new = DynamicCache(config=config) if _takes_dynamic_cache(model) else None
        common = min(common_beginning(self.tokens, prompt), len(prompt) - 1)
        if not common:
            return Reuse(new)
        if self.cache is None:
            return Reuse(new, reason="the states of this model cannot be kept")
        if stretches(config, max(len(prompt), len(self.tokens))):
            return Reuse(new, reason="its RoPE is scaled by the length of the text")
        surplus = len(self.tokens) - common
        if surplus and not cache_slots.is_croppable(self.cache):
            return Reuse(new, reason="a sliding window or a recurrent state cannot be cropped")
        if surplus:
            cache_slots.crop(self.cache, surplus)
        if self.model is model:
            return Reuse(self.cache, common)
        return self._resumed(model, prompt[:common]) or Reuse(new)

    def _resumed(self, model: Any, tokens: list[int]) -> Reuse | None:
        """A cache of the tokens for another view, if it begins as the one that has read them."""
        alike = leading_visits(self.model, model)
        known = [visit for visit in self.hidden if visit <= alike]
        if alike == visit_count(model):
            known.append(alike)
        first = next((visit for visit in sorted(known, reverse=True) if resumable(model, visit)), None)
        if first is None:
            return None
        hidden = self.hidden.get(first)
        ids = torch.tensor([tokens], device=model.device)
        kept = None if hidden is None else hidden[:, : len(tokens)]
        return Reuse(resume(model, first, kept, ids, self.cache), len(tokens), first)


def _is_known(reuse: Reuse, prompt: int) -> bool:
    """Whether an interrupted cache tells what it holds: no slot may be empty that is only not filled yet."""
    has_begun = reuse.tokens > 0 or len(reuse.read) > prompt
    return has_begun and reuse.cache is not None and cache_slots.tells_an_interrupt(reuse.cache)


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _entrances(model: Any) -> set[int]:
    """The visits with which the parts of a model begin, but for the first.

    None of models without views, and of those whose steps are compiled, which hooks would have done anew.
    """
    if is_static(model):
        return set()
    try:
        count = visit_count(model)
    except (ViewError, AttributeError):
        return set()
    return {count * part // PARTS for part in range(1, PARTS)} - {0}


@contextmanager
def _recording(model: Any, known: Collection[int]) -> Iterator[Mapping[int, torch.Tensor]]:
    """What enters visits of a model while it reads: those to keep, and those from which it may go on."""
    visits = _entrances(model)
    if not visits:
        yield {}
        return
    with recording(model, visits | {visit for visit in known if visit <= visit_count(model)}) as hidden:
        yield hidden


def _joined(
    known: Mapping[int, torch.Tensor], new: Mapping[int, torch.Tensor], tokens: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """The hidden states of so many tokens, by visit, where they are all there: first the known ones."""
    for visit in {*known, *new}:
        hidden = torch.cat([part[visit] for part in (known, new) if visit in part], dim=1)
        if hidden.shape[1] >= tokens:
            yield visit, hidden[:, :tokens]


def _takes_dynamic_cache(model: Any) -> bool:
    settings = model.generation_config
    own_kind = settings.cache_implementation not in (None, "dynamic", "static") or settings.use_cache is False
    takes = "past_key_values" in signature(model.forward).parameters  # Mamba's has another name
    return takes and bool(model._supports_default_dynamic_cache()) and not own_kind
