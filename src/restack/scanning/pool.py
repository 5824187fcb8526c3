"""Processes on this machine that share the work, one model each."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any

from restack.errors import RestackError, UsageError

Work = Callable[[Any], Any]
_work: Work | None = None  # of this process


class LocalPool:
    """Processes that each make their own worker, once, and are given tasks as they come free.

    Use it in a `with`: at its end, after an interrupt too, the processes are gone.
    """

    def __init__(self, make: Callable[[int], Work], workers: int) -> None:
        """Start the processes.

        Args:
            make: makes what does a task, of the worker's number; can be pickled.
            workers: how many processes.
        """
        self.workers = workers
        context = get_context("spawn")  # a fork would inherit torch's threads, and hang
        numbers = context.Queue()
        for number in range(workers):
            numbers.put(number)
        self._pool = ProcessPoolExecutor(workers, context, _begin, (make, numbers))

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
        """What is made of each task, as it is ready.

        Raises:
            UsageError: a process ended, most likely because there was no memory for its model.
            RestackError: a worker could not be made.
        """
        try:
            for future in as_completed([self._pool.submit(_do, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool:
            raise UsageError(
                "a worker process ended: it could not be started, or there was not memory for one model "
                "each; try fewer --workers, and the same command goes on"
            ) from None


def _begin(make: Callable[[int], Work], numbers: Any) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one
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


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
