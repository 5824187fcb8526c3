"""Which folders hold a checkpoint as Meta gives it out, by the names of their files. Imports no torch."""

import re
from pathlib import Path

PARAMS = "params.json"
SHARD = re.compile(r"consolidated\.(\d\d)\.pth")


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in Meta's layout."""
    return (folder / PARAMS).is_file() and bool(shard_files(folder))


def shard_files(folder: Path) -> dict[int, Path]:
    """The files with its weights, by their number, in order."""
    matches = ((SHARD.fullmatch(path.name), path) for path in folder.glob("consolidated.*.pth"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))
