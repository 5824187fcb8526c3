"""Processes on this machine that share the work, one model each."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from queue import Empty
from types import TracebackType
from typing import Any

from restack.errors import RestackError, UsageError

Work = Callable[[Any], Iterable[Any]]
PATIENCE = 0.2  # seconds between two looks at whether all processes are still there

_work: Work | None = None  # of this process
_made: Any = None  # where it puts what it makes


class LocalPool:
    """Processes that each make their own worker, once, and are given tasks as they come free.

    Use it in a `with`: at its end, after an interrupt too, the processes are gone.
    """

    def __init__(self, make: Callable[[int], Work], workers: int) -> None:
        """Start the processes.

        Args:
            make: makes what does a task, piece by piece, of the worker's number; can be pickled.
            workers: how many processes.
        """
        self.workers = workers
        context = get_context("spawn")  # a fork would inherit torch's threads, and hang
        numbers = context.Queue()
        for number in range(workers):
            numbers.put(number)
        self._made = context.Queue()
        self._pool = ProcessPoolExecutor(workers, context, _begin, (make, numbers, self._made))

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:  # what they are at is not waited for
            for process in processes:
                process.kill()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """What is made of the tasks, piece by piece, as it is ready.

        Raises:
            UsageError: a process ended, most likely because there was no memory for its model.
            RestackError: a worker could not be made.
        """
        left = {self._pool.submit(_do, task) for task in tasks}
        expected = received = 0
        try:
            while left or received < expected:
                with suppress(Empty):
                    yield self._made.get(timeout=PATIENCE)
                    received += 1
                for future in [future for future in left if future.done()]:
                    expected += future.result()
                    left.remove(future)
        except BrokenProcessPool:
            raise UsageError(
                "a worker process ended: it could not be started, or there was not memory for one model "
                "each; try fewer --workers, and the same command goes on"
            ) from None


def _begin(make: Callable[[int], Work], numbers: Any, made: Any) -> None:
    global _work, _made
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one
    _made = made
    number = numbers.get()
    try:
        _work = make(number)
    except RestackError as error:
        _work = _Failed(error)


class _Failed:
    """Answers every task with what went wrong when the worker was made."""

    def __init__(self, error: RestackError) -> None:
        self.error = error

    def __call__(self, task: Any) -> Any:
        raise self.error


def _do(task: Any) -> int:
    """Do a task, and return how many pieces it was made of."""
    assert _work is not None
    count = 0
    for piece in _work(task):
        _made.put(piece)
        count += 1
    return count


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
