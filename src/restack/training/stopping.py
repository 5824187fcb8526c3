"""Ctrl-C while a model is trained: the step in hand is finished, and a checkpoint is saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(is_alone: bool) -> Iterator[Callable[[], bool]]:
    """Whether somebody asked to stop: with SIGINT (Ctrl-C), or with SIGTERM, as clusters do.

    Args:
        is_alone: there is one process, and a second Ctrl-C ends it at once. Several get it twice: from the
            terminal and from torchrun.
    """
    asked: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if asked and is_alone:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda: False
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
