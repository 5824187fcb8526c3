"""Who runs the model now: several texts are written at once, in turns, and what can run together does."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

import torch

from restack.runtime.decoding import Step, run_together


class Turns:
    """Lets one thread at a time run a model, the one that has waited longest first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Event] = deque()
        self._is_taken = False
        self._steps: list[Step] = []  # of threads that wait; only who has the turn looks at them

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

    def run(self, step: Step) -> torch.Tensor:
        """The logits of a step, after the others have had a turn each.

        Whoever of those that wait for a step has the turn first runs all their steps.
        """
        self._steps.append(step)
        try:
            self.pass_on()
            if step.logits is None:
                self._run_with_others(step)
        finally:
            self._steps = [each for each in self._steps if each is not step and each.logits is None]
        assert step.logits is not None
        return step.logits

    def _run_with_others(self, step: Step) -> None:
        try:
            run_together([each for each in self._steps if each.kind == step.kind])
        except Exception:  # maybe one of theirs is the reason, who shall find out themselves
            run_together([step])

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
