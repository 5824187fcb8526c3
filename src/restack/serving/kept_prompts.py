"""The keys and values of conversations, kept for their next turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from restack.runtime import PromptCache
from restack.runtime.prompt_cache import common_beginning

MOST = 256  # texts


class KeptPrompts:
    """What models have read, the last used longest, as far as there is room.

    A conversation that goes on takes back what was kept of it. One that only begins like another takes a copy
    of that, whose tensors are shared as far as that is safe.
    """

    def __init__(self, room: int) -> None:
        """Nothing kept yet.

        Args:
            room: bytes that may be kept between texts.
        """
        self.room = room
        self._lock = Lock()
        self._kept: list[PromptCache] = []  # the last used at the end

    @property
    def bytes(self) -> int:
        """Of all that is kept now; tensors that two share are counted twice."""
        with self._lock:
            return sum(each.bytes for each in self._kept)

    @contextmanager
    def for_prompt(self, model: Any, prompt: Sequence[int]) -> Iterator[PromptCache]:
        """What is known of a prompt's beginning, to be read on with; it is kept afterwards."""
        found = self._take(model, prompt)
        try:
            yield found
        finally:
            self._keep(found)

    def _take(self, model: Any, prompt: Sequence[int]) -> PromptCache:
        with self._lock:
            known = [
                (common_beginning(each.tokens, prompt), each.model is model, each) for each in self._kept
            ]
            tokens, _, best = max(known, key=lambda each: each[:2], default=(0, False, None))
            if best is None or not tokens:
                return PromptCache()
            if tokens < len(best.tokens):
                return best.fork()
            self._kept.remove(best)
            return best

    def _keep(self, read: PromptCache) -> None:
        with self._lock:
            if not read.tokens or read.bytes > self.room:
                return
            self._kept.append(read)
            while len(self._kept) > MOST or sum(each.bytes for each in self._kept) > self.room:
                del self._kept[0]
