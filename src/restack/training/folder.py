"""The folder of a run: its settings, its log, its whole checkpoints, and at the end its model.

training.json             the settings, written first
log.jsonl                 a line a step, and a line an evaluation
loss.png                  the picture of the log
checkpoints/checkpoint-N  after N steps; written under another name, and renamed when it is whole
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from restack.errors import UsageError
from restack.recipes import check_new_folder
from restack.recipes.whole_file import PART, write_whole

FORMAT = 1
SETTINGS, LOG, PICTURE, CHECKPOINTS = "training.json", "log.jsonl", "loss.png", "checkpoints"
CONFIG = "config.json"  # which makes a folder a model
KEPT = 2  # checkpoints
Entry = dict[str, Any]  # a line of the log


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def settings(self) -> Path:
        return self.path / SETTINGS

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def picture(self) -> Path:
        return self.path / PICTURE

    def check(self) -> None:
        """Refuse a folder in which no run can be begun or gone on with. Nothing is changed.

        Raises:
            UsageError: it cannot be made, is no run and not empty, or holds a finished run.
        """
        if not self.settings.is_file():
            check_new_folder(self.path)
        elif self._read()["finished"]:
            raise UsageError(
                f"{self.path} holds a run that is finished; name another folder, or use the model: "
                f"restack chat {self.path}"
            )

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write down what was asked for; or check that it is what an unfinished run was asked for.

        Args:
            asked: everything that decides the run's result, by name.

        Raises:
            UsageError: as `check` does, or the run was asked for with other settings.
        """
        self.check()
        if not self.settings.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(asked, finished=False)
            return
        self._refuse_others(json.loads(json.dumps(asked)))
        for left in [*self.path.glob(f".*{PART}"), *self.checkpoints.glob(f"*{PART}")]:
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed

    def finish(self, keep_checkpoints: bool) -> None:
        """Say that the run is finished, and throw away what only an unfinished one needs."""
        said = self._read()
        self._write(said["asked"], finished=True)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def whole_checkpoints(self) -> list[Path]:
        """Those that are whole, the last one last."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if step_of(path) is not None]
        return sorted(found, key=lambda path: step_of(path) or 0)

    def rotate(self) -> None:
        """Throw all checkpoints away but the last two: under another name, since that takes a while."""
        for old in self.whole_checkpoints()[:-KEPT]:
            going = old.with_name(old.name + PART)
            old.rename(going)
            shutil.rmtree(going, ignore_errors=True)

    def move_in(self, made: Path) -> None:
        """Move all that is in a folder inside this one into this one, what makes it a model last."""
        for item in sorted(made.iterdir(), key=lambda item: item.name == CONFIG):
            goal = self.path / item.name
            if goal.is_dir():  # of a process that was killed while it did this
                shutil.rmtree(goal)
            item.rename(goal)

    def _read(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(self.settings.read_text(encoding="utf-8"))
            written, _ = said["format"], (said["asked"].items(), said["finished"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{self.settings} is damaged; name another folder, or remove it") from None
        if written != FORMAT:
            raise UsageError(
                f"{self.settings} has format {written!r}, and this Restack reads {FORMAT}; go on with the "
                "Restack that began the run, or name another folder"
            )
        return said

    def _refuse_others(self, asked: Mapping[str, Any]) -> None:
        before = self._read()["asked"]
        for name in {**asked, **before}:
            then, now = before.get(name), asked.get(name)
            if then != now:
                raise UsageError(
                    f"{self.path} holds a run of another command: {name} was {_told(then)} and is "
                    f"{_told(now)} now; name another folder, or give the same command to go on"
                )

    def _write(self, asked: Mapping[str, Any], finished: bool) -> None:
        said = {"format": FORMAT, "finished": finished, "asked": asked}
        write_whole(self.settings, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def refuse_damaged(checkpoint: Path) -> None:
    """Refuse a checkpoint whose files were cut short after it was written.

    Raises:
        UsageError: so it was.
    """
    for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        if not is_zipfile(file):  # as torch writes them
            raise UsageError(
                f"{file} is damaged; remove {checkpoint.name}, and the same command goes on from the "
                "checkpoint before it"
            )


def step_of(checkpoint: Path) -> int | None:
    """The number of steps that a checkpoint was taken after; None for what is no whole checkpoint."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else None


def read_log(folder: str | Path) -> list[Entry]:
    """The log of a run: {step, loss, lr, grad_norm, tokens, seconds}, or {step, eval_loss, perplexity, ...}.

    Losses are in nats a token; the seconds are those of training and evaluating, of all sessions together. A
    last line that was cut short by a kill is left out.
    """
    try:
        lines = (Path(folder) / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_log(folder: Folder, step: int) -> list[Entry]:
    """Drop what was logged after a step, since it is going to be done again; return the rest.

    Args:
        folder: of the run.
        step: of the checkpoint to go on from; -1: there is none.
    """
    kept = [entry for entry in read_log(folder.path) if entry["step"] <= step]
    write_whole(folder.log, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept


def flush(folder: Path) -> None:
    """Have the disk hold all files of a folder, so that they outlive a loss of power too."""
    for path in [*folder.rglob("*"), folder]:
        with opened(path) as descriptor:
            os.fsync(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file or folder, as a number to the operating system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _told(value: Any) -> str:
    return "not there" if value is None else f"{value!r:.80}"
