"""A folder that is there as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from restack.errors import UsageError


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
        with _told(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():  # and is empty
                folder.rmdir()
            beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


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
