"""Who runs the model now: several texts are written at once, a token each in turn."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

import torch


class Turns:
    """Lets one thread at a time run a model, the one that has waited longest first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Event] = deque()
        self._is_taken = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn, and give it to the next at the end."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def pass_on(self) -> None:
        """Let the others that wait have a turn each; torch's random numbers go on as if none had."""
        with self._lock:
            if not self._waiting:
                return
        numbers = torch.get_rng_state()
        is_on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        on_cuda = torch.cuda.get_rng_state_all() if is_on_cuda else []
        self._give()
        self._take()
        torch.set_rng_state(numbers)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)

    def _take(self) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = Event()
            self._waiting.append(turn)
        turn.wait()

    def _give(self) -> None:
        """The turn goes to the next without being free between, or a newcomer could push in."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._is_taken = False
