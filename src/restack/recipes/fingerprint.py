"""What tells one model from another without reading all of its weights.

A fingerprint has three parts: of the config, of the names, types and shapes of the stored tensors, and of a
few bytes of each tensor. The last tells a model from its fine-tunes, which share the first two. Of a model
with hundreds of tensors it reads kilobytes, however large the model is.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restack.errors import ModelError
from restack.llama.meta_layout import PARAMS
from restack.recipes.location import CONFIG, Location

if TYPE_CHECKING:
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers writes anew each time it saves a config.
PASSING = {"_commit_hash", "_name_or_path", "dtype", "torch_dtype", "transformers_version"}
MOST_SAMPLES = 4096  # models with many experts have more tensors; then these are spread evenly over them
SAMPLE = 64  # bytes, from the middle of a tensor
LARGEST_HEADER = 100_000_000  # bytes; what safetensors itself refuses to read beyond


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file."""

    file: Path
    dtype: str  # as safetensors writes it: "BF16"
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    stop: int

    def sample(self, size: int) -> tuple[int, bytes]:
        """About `size` bytes from its middle, whole elements, and the number of the first of these."""
        element = max(1, (self.stop - self.start) // max(1, prod(self.shape)))
        elements = (self.stop - self.start) // element
        wanted = min(elements, max(1, size // element))
        first = (elements - wanted) // 2
        with self.file.open("rb") as file:
            file.seek(self.start + first * element)
            return first, file.read(wanted * element)


@dataclass(frozen=True, slots=True)
class InMemory:
    """A tensor of a loaded model, or in a shard of Meta's, which is mapped into memory and not read."""

    tensor: "torch.Tensor"

    @property
    def dtype(self) -> str:
        """As torch writes it."""
        return str(self.tensor.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the shard's part."""
        return tuple(self.tensor.shape)

    def sample(self, size: int) -> tuple[int, bytes]:
        """As `Stored.sample`."""
        import torch

        numbers = self.tensor.detach().reshape(-1)
        wanted = min(len(numbers), max(1, size // numbers.element_size()))
        first = (len(numbers) - wanted) // 2
        sample = numbers[first : first + wanted].contiguous().view(torch.uint8)
        return first, sample.cpu().numpy().tobytes()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Sixteen hexadecimal digits a part; None where the model has no files that are known here."""

    config: str
    tensors: str | None = None
    samples: str | None = None

    def differences(self, other: "Fingerprint") -> list[str]:
        """What differs between two models, as far as both fingerprints know it."""
        said = {
            "config": (self.config, other.config),
            "set of tensors": (self.tensors, other.tensors),
            "set of weights": (self.samples, other.samples),
        }
        return [name for name, parts in said.items() if None not in parts and parts[0] != parts[1]]

    def __str__(self) -> str:
        return "-".join(part[:8] for part in (self.config, self.tensors, self.samples) if part)


def fingerprint(location: Location) -> Fingerprint:
    """The fingerprint of a model whose files are on this machine.

    Raises:
        ModelError: it has no config.json, or a file with weights is cut short or damaged.
    """
    config = fingerprint_of_config(location)
    stored: Mapping[str, Stored | InMemory]
    stored = _in_shards(location) if location.is_metas else stored_tensors(location)
    if not stored:
        return config
    lines = (f"{name} {stored[name].dtype} {stored[name].shape}" for name in sorted(stored))
    samples = (stored[name].sample(SAMPLE)[1] for name in spread(sorted(stored), MOST_SAMPLES))
    return Fingerprint(config.config, _digest(line.encode() for line in lines), _digest(samples))


def fingerprint_of_config(location: Location) -> Fingerprint:
    """The part of a fingerprint that config.json alone gives, or params.json in its place.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    file = location.file(PARAMS if location.is_metas else CONFIG)
    if file is None:
        raise ModelError(f"{location} has no {CONFIG} on this machine; a recipe needs its base's files")
    settings = _json_object(file)
    kept = {name: value for name, value in settings.items() if name not in PASSING}
    return Fingerprint(_digest([json.dumps(kept, sort_keys=True).encode()]))


def stored_tensors(location: Location) -> dict[str, Stored]:
    """The tensors in the safetensors files of a model, by name; none if it has no such files.

    Raises:
        ModelError: a file is missing, cut short or damaged.
    """
    stored: dict[str, Stored] = {}
    for file in _files(location):
        stored |= _header(file)
    return stored


def _in_shards(location: Location) -> dict[str, InMemory]:
    """The tensors in Meta's shards, by the file's name and theirs; the tables that some have are none."""
    from restack.llama.meta import TABLE, open_shards

    return {
        f"{file.name} {name}": InMemory(tensor)
        for file, tensors in open_shards(location.folder).items()
        for name, tensor in tensors.items()
        if not str(name).endswith(TABLE)
    }


def spread(items: list[str], most: int) -> list[str]:
    """At most `most` of the items, evenly spread over them."""
    step = max(1, -(-len(items) // most))
    return items[::step]


def _files(location: Location) -> list[Path]:
    single, index = location.file(WEIGHTS), location.file(INDEX)
    if single is not None:
        return [single]
    if index is None:
        return []
    shards = _json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index} names no files; get the model again")
    files = []
    for name in sorted(set(shards.values())):
        file = location.file(name)
        if file is None:
            raise ModelError(f"{location} lacks {name}, which its {INDEX} names; get the model again")
        files.append(file)
    return files


def _header(path: Path) -> dict[str, Stored]:
    """What a safetensors file says it holds, checked against its size.

    Format: eight bytes with the length of the header, the header in JSON, then the tensors end to end.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 0 < length <= LARGEST_HEADER:
            raise ModelError(f"{path} is no safetensors file, or is damaged; get it again")
        text = file.read(length)
    data = 8 + length
    if len(text) < length:
        raise ModelError(f"{path} is cut short: {size} bytes, and its header alone has {data}; get it again")
    try:
        stored = {
            name: Stored(
                path,
                str(entry["dtype"]),
                tuple(map(int, entry["shape"])),
                *(data + int(offset) for offset in entry["data_offsets"]),
            )
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is no safetensors file, or is damaged; get it again") from None
    end = max((tensor.stop for tensor in stored.values()), default=data)
    if size < end:
        raise ModelError(f"{path} is cut short: {size} bytes of {end}; get it again")
    return stored


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object; get it again")
    return value


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"\n")
    return digest.hexdigest()[:16]
