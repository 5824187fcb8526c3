"""MODEL[@SPEC]: one way to name a model, or a view of one, for every command and every program."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from restack import demo
from restack.errors import ModelError
from restack.llama.meta_layout import PARAMS, is_meta_folder, shard_files

MERGE_ENDS = (".yaml", ".yml")  # of a mergekit config
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model and, perhaps, the spec of a plan for it."""

    model: str
    spec: str | None = None

    @property
    def location(self) -> str:
        """The folder or hub id that holds the model."""
        return str(demo.FOLDER) if self.model == "demo" else os.path.expanduser(self.model)  # noqa: PTH111

    @property
    def is_local(self) -> bool:
        """Whether the model is on this machine, and not to be looked for on the hub."""
        return _exists(self.location)

    @property
    def is_merge(self) -> bool:
        """Whether this is a mergekit config, which names its models itself."""
        return self.location.lower().endswith(MERGE_ENDS) and os.path.isfile(self.location)  # noqa: PTH113

    def __str__(self) -> str:
        return self.model if self.spec is None else f"{self.model}@{self.spec}"


def parse_reference(text: str) -> Reference:
    """Split MODEL@SPEC at the first @, unless the whole text is a path.

    Raises:
        ModelError: one of the two parts is empty.
    """
    if text and _exists(os.path.expanduser(text)):  # noqa: PTH111
        return Reference(text)
    model, at, spec = text.partition("@")
    if not model.strip():
        raise ModelError(
            f"{text!r} names no model; write a folder, a hub id or demo, and @SPEC after it for a view"
        )
    if at and not spec.strip():
        raise ModelError(
            f"{text!r} ends with @ but no spec; write one as in {model}@0:8,4:12, or leave out the @"
        )
    return Reference(model, spec if at else None)


def check_location(reference: Reference) -> None:
    """Tell what cannot be a model by its name and its files alone, before anything slow is imported.

    Raises:
        ModelError: it is a folder, or a path by its form, and there is no model.
    """
    name, location = reference.model, reference.location
    if not reference.is_local:
        if location.lower().endswith(MERGE_ENDS):
            raise ModelError(f"there is no file {name}")
        if name.startswith((".", "~", os.sep)) or not HUB_ID.fullmatch(location):
            raise ModelError(f"there is no folder {name}; a model is a folder, a hub id or demo")
        return
    folder = Path(location)
    if reference.is_merge or (folder / "config.json").is_file() or is_meta_folder(folder):
        return
    if (folder / PARAMS).is_file():
        raise ModelError(f"{name} has {PARAMS}, and no consolidated.00.pth; get the weights")
    if shard_files(folder):
        raise ModelError(f"{name} has consolidated.*.pth, and no {PARAMS}; get it too")
    kind = "a folder without config.json" if folder.is_dir() else "a file"
    raise ModelError(
        f"{name} is {kind}; a model is a folder with config.json and weights, one with Meta's {PARAMS} "
        "and consolidated.*.pth, a mergekit config (.yaml), or a hub id"
    )


def _exists(path: str) -> bool:
    """Whether there is such a file or folder; a text that cannot be a path, too long perhaps, is none."""
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises OSError on long names)
