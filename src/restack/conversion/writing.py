"""Writing a checkpoint of any size a shard at a time, so that it can be interrupted and gone on with."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from restack.conversion.stored import Output, Source
from restack.recipes.fingerprint import INDEX, WEIGHTS, fingerprint
from restack.recipes.location import Location
from restack.recipes.new_folder import new_folder, resumable_folder
from restack.recipes.saving import save_tokenizer

LARGEST_SHARD = 5_000_000_000  # bytes; what the hub and transformers before version 5 cut at
GENERATION = "generation_config.json"
Progress = Callable[[int, int], None]  # bytes that are written, of all


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is to be written.

    Attributes:
        config: of the model, with the class that it is for in `architectures`.
        outputs: its tensors, in the order in which they are written.
        sources: what they are made of; the first gives its settings of generation too.
        tokenizer: the model that gives its tokenizer; None: the first source.
    """

    config: Any
    outputs: Mapping[str, Output]
    sources: Sequence[Source]
    tokenizer: Location | None = None

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(output.size for output in self.outputs.values())


def write(
    checkpoint: Checkpoint,
    out: Path,
    job: Mapping[str, Any],
    *,
    largest: int = LARGEST_SHARD,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint; a shard at a time is in memory.

    Args:
        checkpoint: what is written.
        out: the folder, made anew. Until all is written its name is another one beside it, and what is
            there of it stays when the work is interrupted, for the same job to go on with.
        job: what is asked for, in JSON; another job, or one of other weights, starts anew.
        largest: bytes of a shard; a single larger tensor is a shard of its own.
        progress: called after each shard.

    Raises:
        UsageError: the folder cannot be made, or is not empty.
        OSError: it cannot be written; what is complete is kept.
    """
    identity = {
        "largest": largest,
        "of": [str(fingerprint(source.location)) for source in checkpoint.sources],
    }
    with resumable_folder(out, {**job, **identity}) as place:
        checkpoint.config.save_pretrained(place)  # or it is refused before the work
        shards = list(_shards(checkpoint.outputs, largest))
        done = 0
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            if not (place / name).exists():
                _write_shard(shard, place / name)
                for source in checkpoint.sources:
                    source.release()
            weight_map |= dict.fromkeys(shard, name)
            done += sum(output.size for output in shard.values())
            if progress is not None:
                progress(done, checkpoint.size)
        if len(shards) > 1:
            index = {"metadata": {"total_size": checkpoint.size}, "weight_map": weight_map}
            (place / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _write_around(checkpoint.sources[0].location, place, checkpoint.tokenizer)


def write_model(model: Any, source: Source, out: Path) -> None:
    """Write a model that is in memory, with what is beside the weights of the one that it was made from.

    Raises:
        UsageError: the folder cannot be made, or is not empty.
    """
    with new_folder(out) as place:
        model.save_pretrained(place)
        _write_around(source.location, place)


def _shards(outputs: Mapping[str, Output], largest: int) -> Iterator[dict[str, Output]]:
    """The tensors in groups of at most so many bytes."""
    shard: dict[str, Output] = {}
    size = 0
    for name, output in outputs.items():
        if shard and size + output.size > largest:
            yield shard
            shard, size = {}, 0
        shard[name] = output
        size += output.size
    if shard:
        yield shard


def _write_shard(shard: Mapping[str, Output], file: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, output in shard.items():
        tensor = output.make().contiguous()
        if tensor.data_ptr() in taken:  # a repeated layer's: safetensors refuses memory that is shared
            tensor = tensor.clone()
        taken.add(tensor.data_ptr())
        tensors[name] = tensor
    unfinished = file.with_suffix(".unfinished")
    save_file(tensors, unfinished, {"format": "pt"})
    os.replace(unfinished, file)  # noqa: PTH105  (one step: it is the whole file, or is not there)


def _write_around(source: Location, place: Path, tokenizer: Location | None = None) -> None:
    """What is beside the weights: settings of generation, and the tokenizer if there is one."""
    if (settings := source.file(GENERATION)) is not None:
        (place / GENERATION).write_bytes(settings.read_bytes())
    save_tokenizer(tokenizer or source, place)
