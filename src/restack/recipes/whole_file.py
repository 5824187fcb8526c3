"""A file that is there as a whole, or as it was."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # how the name of what is not whole yet ends


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name at the end; after an error, nothing is left."""
    part = path.with_name(f".{path.name}{PART}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, and give it its own when it is whole."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
