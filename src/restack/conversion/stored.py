"""The tensors of a checkpoint on this machine, read one at a time, and those of one that is to be written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from restack.recipes.fingerprint import Stored, stored_tensors
from restack.recipes.location import Location

WEIGHT_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that is to be written: how many bytes it has, and how it is made when its turn comes."""

    size: int
    make: Callable[[], torch.Tensor]


class Source(Protocol):
    """Where tensors are read from."""

    location: Location

    @property
    def tensors(self) -> Mapping[str, Any]:
        """What is known of each, by its name."""

    def copy(self, name: str) -> Output:
        """The tensor as it is; its memory may be a file's until `release`."""

    def release(self) -> None:
        """Give back the memory of the files."""


@dataclass(slots=True)
class Weights:
    """The safetensors of a checkpoint, mapped into memory while they are in use."""

    location: Location
    tensors: dict[str, Stored]
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, location: Location) -> "Weights":
        """Those of a location; of the hub, they are fetched before.

        Raises:
            ModelError: a file is missing, cut short or damaged.
        """
        if not location.is_local:
            from huggingface_hub import snapshot_download

            snapshot_download(location.name, revision=location.revision, allow_patterns=WEIGHT_FILES)
        return cls(location, stored_tensors(location))

    def copy(self, name: str) -> Output:
        """The tensor as it is; its memory is the file's until `release`."""
        stored = self.tensors[name]
        return Output(stored.stop - stored.start, lambda: self._read(name, stored.file))

    def release(self) -> None:
        """Give back the memory of the files."""
        self._open.clear()

    def _read(self, name: str, file: Path) -> torch.Tensor:
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        return self._open[file].get_tensor(name)  # type: ignore[no-any-return]
