"""Where the user wants files, looked at before the work that makes them."""

import os
from pathlib import Path

from restack.errors import UsageError

PICTURE = "plans.png"


def check_out(out: Path) -> None:
    """Refuse a folder that could not be made or written into; nothing is made yet.

    Raises:
        UsageError: it, or what it would be made in, is not a folder or is not ours to write into.
    """
    there = next(place for place in (out, *out.parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--out {out}: {there} is not a folder; name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {there} cannot be written into; name another folder")
    if (out / PICTURE).is_dir():
        raise UsageError(f"--out {out}: {PICTURE} in it is a folder, and should be the picture; name another")
