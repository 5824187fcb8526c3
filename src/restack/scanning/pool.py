"""Processes on this machine that share the work, one model each."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from queue import Empty
from threading import Thread, current_thread, main_thread
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
        with _no_interrupts():  # they inherit it: Ctrl-C in a terminal reaches them before they can say so
            self._pool.submit(int)  # starts them all

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
                try:
                    piece = self._made.get(timeout=PATIENCE)
                except Empty:  # all that is made so far is handed on; has anybody failed?
                    for future in [future for future in left if future.done()]:
                        left.remove(future)
                        expected += future.result()
                else:
                    received += 1
                    yield piece
        except BrokenProcessPool:
            raise UsageError(
                "a worker process ended: it could not be started, or there was not memory for one model "
                "each; try fewer --workers, and the same command goes on"
            ) from None


def _begin(make: Callable[[int], Work], numbers: Any, made: Any) -> None:
    global _work, _made
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one
    Thread(target=_end_with_parent, daemon=True).start()
    _made = made
    number = numbers.get()
    try:
        _work = make(number)
    except RestackError as error:
        _work = _Failed(error)


def _end_with_parent() -> None:
    """End this process when the first one is gone, by a kill too; nobody else would."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C is ignored meanwhile, and by the processes that are started meanwhile."""
    if current_thread() is not main_thread():  # where signals cannot be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
