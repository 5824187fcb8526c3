"""A folder that is there as a whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from restack.errors import RestackError, UsageError

JOB = "job.json"  # in the folder of resumable work: what the work is


def check_new_folder(folder: Path) -> None:
    """Refuse a place where no folder can be made, or where something is that would be lost.

    Raises:
        UsageError: there is a file, a folder that is not empty, or no right to write.
    """
    with _told(folder):
        folder = folder.expanduser()
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is there and not empty; name another folder, or remove it first")
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is there and no folder; name one that is not there yet")
        above = _nearest(folder)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be made: {above} cannot be written into; name another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into beside `folder`, whose name it takes at the end; after an error, nothing.

    Raises:
        UsageError: as `check_new_folder` says.
    """
    check_new_folder(folder)
    with _told(folder):
        folder = folder.expanduser().resolve()
        beside = _nearest(folder) / f".{folder.name[:100]}.{uuid4().hex[:8]}.part"
        beside.mkdir()
    try:
        yield beside
        _take_name(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@contextmanager
def resumable_folder(folder: Path, job: Mapping[str, Any]) -> Iterator[Path]:
    """The same for long work: when it is interrupted, what is in the folder beside stays there.

    The next call for the same job is given it back, with all files that are in it. Another job starts anew.

    Args:
        folder: whose name it takes at the end.
        job: what the work is, in JSON.

    Raises:
        UsageError: as `check_new_folder` says.
    """
    check_new_folder(folder)
    with _told(folder):
        folder = folder.expanduser().resolve()
        beside = _nearest(folder) / f".{folder.name[:100]}.part"
        told = json.dumps(job, sort_keys=True)
        if beside.exists() and not _is_of(beside / JOB, told):
            shutil.rmtree(beside)
        if not beside.exists():
            beside.mkdir()
            (beside / JOB).write_text(told, encoding="utf-8")
    try:
        yield beside
        _take_name(beside, folder)
        (folder / JOB).unlink()
    except RestackError:  # not an interruption: it would fail again
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _is_of(file: Path, job: str) -> bool:
    """Whether a folder is of a job, by the file in it that tells."""
    try:
        return file.read_text(encoding="utf-8") == job
    except (OSError, ValueError):
        return False


def _take_name(beside: Path, folder: Path) -> None:
    with _told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # and is empty
            folder.rmdir()
        beside.rename(folder)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell in one line what names cannot be: too long, with NUL, of somebody who has no home."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{str(folder)!r:.200} cannot be made: {reason}; name another folder") from None


def _nearest(folder: Path) -> Path:
    """The nearest place above a folder that is there."""
    return next(place for place in folder.absolute().parents if place.exists())
