"""One process, or several that torchrun started: who they are, and what they agree on."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from restack.errors import RestackError, UsageError

Value = TypeVar("Value")
EVERYWHERE = "restack_everywhere"  # of an error: all processes have it, and the first one tells it


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run.

    Attributes:
        count: of them all.
        rank: of this one; only rank 0 writes and prints.
        local_rank: of this one on its machine, and the number of its GPU.
    """

    count: int = 1
    rank: int = 0
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Processes":
        """As torchrun says it; one process without torchrun."""
        if "LOCAL_RANK" not in os.environ:
            return cls()
        return cls(*(int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def join(self, on_cpu: bool) -> None:
        """Meet the other processes, if there are any."""
        if self.count > 1:
            from accelerate import PartialState  # type: ignore[import-untyped]

            PartialState(cpu=on_cpu, **({"backend": "gloo"} if on_cpu else {}))

    def leave(self) -> None:
        """Say goodbye to the other processes, if there are any."""
        if self.count > 1:
            import torch.distributed

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            # What was trained still holds the group. Gloo's threads end with it; when the interpreter ends
            # before them, they now and then abort the process.
            gc.collect()

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()

    def any(self, is_so: bool) -> bool:
        """Whether it is so in some process; all have to ask."""
        return any(self.gathered(is_so))

    def together(self, work: Callable[[], Value]) -> Value:
        """What each process's work comes to, if it went well in all of them.

        Raises:
            RestackError: of the first process in which it did not: in all processes alike, so that one of
                them can tell it and none waits for another.
        """
        if self.count == 1:
            return work()
        result, error = None, None
        try:
            result = work()
        except RestackError as wrong:
            error = wrong
        first = next((wrong for wrong in self.gathered(error) if wrong is not None), None)
        if first is not None:
            vars(first)[EVERYWHERE] = True
            raise first
        return result  # type: ignore[return-value]

    def gathered(self, value: Any) -> list[Any]:
        """The value of each process; all have to give theirs."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values


def check_extra(*packages: str) -> None:
    """Refuse to go on without packages of the extra.

    Raises:
        UsageError: one of them is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"training needs {package}, which is not installed; pip install 'restack[train]'"
            )
