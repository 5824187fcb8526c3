"""Workers on a Ray cluster, one model each."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from restack.errors import RestackError, UsageError

Work = Callable[[Any], Iterable[Any]]
PATIENCE = 10  # seconds until a cluster that does not answer is not there


class RayPool:
    """Actors that each make their own worker, once, and are given tasks as they come free.

    It has the form of the pool of processes on one machine that a scan uses otherwise. With RAY_ADDRESS set,
    it is on that cluster, whose machines need Restack and the model; otherwise on a cluster of its own on
    this machine. Use it in a `with`: at its end the actors are gone.
    """

    def __init__(self, make: Callable[[int], Work], workers: int, *, gpus: int = 0) -> None:
        """Start the actors.

        Args:
            make: makes what does a task, piece by piece, of the worker's number; can be pickled.
            workers: how many actors.
            gpus: that each actor has to itself.

        Raises:
            UsageError: Ray is not installed, or cannot start; or the cluster has no room for the actors.
        """
        try:
            import ray
        except ImportError:
            raise UsageError("--ray needs Ray; pip install 'restack[ray]'") from None
        self._ray, self.workers = ray, workers
        self._is_ours = not ray.is_initialized()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a change to come
        if self._is_ours:
            try:
                # "local", or Ray would look for a cluster that somebody left here, and wait for a dead one
                address = os.environ.get("RAY_ADDRESS") or "local"
                _check_reached(address)
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({"include_dashboard": False} if address == "local" else {}),
                )
            except Exception as error:  # Ray has many
                raise UsageError(f"Ray cannot be started or reached: {_line(error)}") from None
        needed = {"CPU": workers, "GPU": workers * gpus}
        there = ray.cluster_resources()
        for kind, count in needed.items():
            if count > there.get(kind, 0):
                self._end()
                raise UsageError(
                    f"{workers} workers need {count} {kind}, and the cluster has {there.get(kind, 0):g}; ask "
                    "for fewer --workers"
                )
        actor = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor)
        self._actors = [actor.remote(make, number) for number in range(workers)]

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._end()

    def _end(self) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """What is made of the tasks, piece by piece, as it is ready.

        Raises:
            UsageError: an actor died, most likely because there was no memory for its model.
            RestackError: a worker could not be made.
        """
        waiting, free = deque(tasks), list(self._actors)
        running: dict[Any, Any] = {}  # what actors make, and who
        try:
            while waiting or running:
                while waiting and free:
                    actor = free.pop()
                    running[actor.work.remote(waiting.popleft())] = actor
                (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
                try:
                    piece = self._ray.get(next(ready))
                except StopIteration:
                    free.append(running.pop(ready))
                    continue
                if isinstance(piece, RestackError):
                    raise piece
                yield piece
        except self._ray.exceptions.RayActorError:
            raise UsageError(
                "a Ray worker died, most likely because there was not memory for one model each; try fewer "
                "--workers, and the same command goes on"
            ) from None


class _Actor:
    """One worker; what cannot be made is told by its first task."""

    def __init__(self, make: Callable[[int], Work], number: int) -> None:
        self.failed: RestackError | None = None
        try:
            self.do = make(number)
        except RestackError as error:
            self.failed = error

    def work(self, task: Any) -> Iterator[Any]:
        if self.failed is not None:
            yield self.failed
        else:
            yield from self.do(task)


def _check_reached(address: str) -> None:
    """Find out whether somebody answers at HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text:.200}"
