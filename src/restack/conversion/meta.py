"""Meta's own checkpoints (`params.json`, `consolidated.*.pth`) as ones that transformers loads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restack import recipes
from restack.conversion.stored import Output
from restack.conversion.writing import LARGEST_SHARD, Checkpoint, Progress, write
from restack.errors import UsageError
from restack.llama.meta import Weight, read_settings, stored_weights
from restack.recipes.location import Location


@dataclass(slots=True)
class MetaWeights:
    """The tensors of Meta's shards by their names in transformers, joined and reordered one at a time."""

    location: Location
    settings: dict[str, Any]
    tensors: dict[str, Weight] = field(init=False)

    def __post_init__(self) -> None:
        self.release()

    @classmethod
    def of(cls, location: Location) -> "MetaWeights":
        """Those in a folder.

        Raises:
            ModelError: as `restack.llama.meta` has it.
        """
        return cls(location, read_settings(location.folder))

    def copy(self, name: str) -> Output:
        """The tensor as it is; its memory may be a shard's until `release`."""
        return Output(self.tensors[name].size, lambda: self.tensors[name].read())

    def release(self) -> None:
        """Map the shards anew, which gives back the memory of what was read of them."""
        self.tensors = stored_weights(self.location.folder, self.settings)


def convert_meta(
    folder: str | Path,
    out: str | Path,
    *,
    largest: int = LARGEST_SHARD,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint of Meta's as one of transformers' Llama, with its tokenizer; a shard at a time.

    Args:
        folder: with `params.json`, `consolidated.*.pth` and perhaps `tokenizer.model`.
        out: the folder, made anew; an interrupted conversion is gone on with.
        largest: bytes of a shard.
        progress: called with the bytes that are written, and of all.

    Returns:
        The folder.

    Raises:
        ModelError: a file is missing, damaged, or not what `params.json` says.
        UsageError: the folder is in another layout; or `out` cannot be made.
    """
    from transformers import LlamaConfig

    reference = recipes.parse_reference(str(folder))
    recipes.check_location(reference)
    location = Location(reference.location)
    if not location.is_metas:
        raise UsageError(f"{folder} is no folder of Meta's; one has params.json, and no config.json")
    weights = MetaWeights.of(location)
    config = LlamaConfig(**weights.settings, architectures=["LlamaForCausalLM"])
    outputs = {name: weights.copy(name) for name in weights.tensors}
    job = {"convert": "meta"}
    write(Checkpoint(config, outputs, [weights]), Path(out), job, largest=largest, progress=progress)
    return Path(out)
