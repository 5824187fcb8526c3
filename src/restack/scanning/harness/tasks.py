"""lm-eval's tasks by name or file, with everything that can be wrong with them told in one line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restack.errors import RestackError, UsageError
from restack.scanning.harness.quiet import quiet

NEEDED = (0, 4, 13)  # of lm-eval: its registry, its task manager
SEED = 1234  # lm-eval's, of all random numbers but Python's own
FILE_ENDS = (".yaml", ".yml")
GROUP = re.compile(r"^group\s*:", re.MULTILINE)  # in a file; YAML's own reader refuses lm-eval's !function


def check_installed() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        UsageError: it, or what its models need, is not installed, or it is too old.
    """
    for module, package in (("lm_eval", "lm-eval"), ("accelerate", "accelerate")):
        if find_spec(module) is None:
            raise UsageError(f"{package} is not installed; pip install 'restack[eval]'")
    try:
        installed = version("lm_eval")
    except PackageNotFoundError:
        return
    numbers = tuple(int(part) for part in installed.split(".")[:3] if part.isdecimal())
    if numbers < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise UsageError(
            f"lm-eval {installed} is installed, and {needed} is needed; pip install -U 'restack[eval]'"
        )


def _check_files(names: Sequence[str], include_path: Path | None) -> None:
    """Refuse task files and a folder that are not there.

    Raises:
        UsageError: so it is, or there are no names.
    """
    if include_path is not None and not include_path.expanduser().is_dir():
        raise UsageError(f"--include-path {include_path}: there is no such folder; name one of task files")
    if not names:
        raise UsageError("there is no task; name some, as in hellaswag,arc_easy, or a .yaml file")
    for name in names:
        if _is_file(name) and not Path(name).expanduser().is_file():
            raise UsageError(f"there is no task file {name}")


@dataclass(frozen=True, slots=True)
class Asked:
    """Tasks that are known by name; their data have not been read.

    Attributes:
        manager: lm-eval's, that knows them.
        names: of tasks, groups and tags, and paths of task files.
    """

    manager: Any
    names: tuple[str, ...]

    def load(self) -> dict[str, Any]:
        """The tasks and groups, with their data: lm-eval's `tasks`, `groups` and `group_map`.

        Raises:
            UsageError: a task's file is wrong, or its data are not there.
        """
        found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in self.names:
            with _told(name), quiet():
                for kind, values in self.manager.load([name]).items():
                    found[kind] |= values
        return found


def find_tasks(names: Sequence[str], include_path: Path | None = None) -> Asked:
    """Look tasks up.

    lm-eval's own list takes seconds to read, so it is read only for names that are not found without.

    Args:
        names: of tasks, groups and tags, * and ? as in file names; or paths of .yaml files.
        include_path: a folder of task files, which come before lm-eval's own.

    Raises:
        UsageError: lm-eval is not installed, there is no such file or folder, or no such task; the message
            names others that are nearly alike.
    """
    check_installed()
    _check_files(names, include_path)
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    folder = None if include_path is None else str(include_path.expanduser())
    with quiet():
        manager = TaskManager(include_path=folder, include_defaults=False)
        found = [_matches(manager, name) for name in names]
        if not all(some and all(_is_whole(manager, name) for name in some) for some in found):
            manager = TaskManager(include_path=folder)
            found = [_matches(manager, name) for name in names]
    for name, some in zip(names, found, strict=True):
        if not some:
            _refuse_unknown(name, manager.all_tasks)
    return Asked(manager, tuple(dict.fromkeys(name for some in found for name in some)))


def prepare(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set a task's number of examples and the seed they are drawn with, as `simple_evaluate` does.

    Args:
        task: of lm-eval; changed.
        num_fewshot: examples before each question; None as the task has it. A task that says 0 keeps it.
        seed: of the draw.
    """
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def _is_file(name: str) -> bool:
    return name.lower().endswith(FILE_ENDS)


def _matches(manager: Any, name: str) -> list[str]:
    if _is_file(name):
        return [str(Path(name).expanduser())]
    matches: list[str] = manager.match_tasks([name])
    return matches


def _is_whole(manager: Any, name: str) -> bool:
    """Whether all that a name or file stands for is among the tasks that are known."""
    if _is_file(name):
        with _told(name):
            return GROUP.search(Path(name).read_text(encoding="utf-8")) is None
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name != "GROUP":
        return entry is not None
    members = entry.cfg.get("task")
    return isinstance(members, list) and all(
        isinstance(member, str) and _is_whole(manager, member) for member in members
    )


def _refuse_unknown(name: str, known: Sequence[str]) -> None:
    alike = get_close_matches(name, known, n=3)
    like = f"; there is {', '.join(alike)}" if alike else ""
    raise UsageError(
        f"lm-eval has no task {name!r}{like}; lm-eval ls tasks lists all, and --include-path DIR adds yours"
    )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what lm-eval and datasets say of a task that cannot be loaded into one line."""
    try:
        yield
    except RestackError:
        raise
    except Exception as error:  # task files run code of their own
        reason = " ".join(str(error).split())
        if isinstance(error, ConnectionError) or "Offline" in type(error).__name__:
            raise UsageError(
                f"the data of task {name} are not on this machine, and the hub cannot be reached "
                f"({reason:.120}); load them once with a network"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise UsageError(f"the data of task {name} are not there: {reason:.200}") from error
        raise UsageError(
            f"task {name} cannot be loaded: {type(error).__name__}: {reason:.200}; correct its file"
        ) from error
