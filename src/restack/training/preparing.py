"""What is looked at before anything is written: the data, the model, and what both make of the settings."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restack.errors import ModelError, UsageError, ViewError
from restack.plans.pointing import counted
from restack.runtime import context_length
from restack.training import packing
from restack.training.documents import Reading, documents
from restack.training.packing import Data
from restack.training.processes import Processes
from restack.training.settings import BATCH, Training

LENGTH = 1024  # tokens of a row, where nothing is said and the model has room for them
SAMPLE = 16  # numbers of each weight that tell whether it is the same
Source = str | Path | Sequence[str | Path] | Sequence[Sequence[int]] | Tensor


def read(model: Any, tokenizer: Any, data: Source, evaluation: Source | None, settings: Training) -> Data:
    """The rows to train on and to evaluate on.

    Raises:
        UsageError: the data cannot be used, or not with this model and tokenizer.
    """
    context = context_length(model.config)
    if settings.length is not None and context is not None and settings.length > context:
        raise UsageError(
            f"--length is {settings.length}, and the model's context is {context}; write {context}"
        )
    length = settings.length or min(LENGTH, context or LENGTH)
    reading = Reading(settings.column, settings.split, settings.skip_bad_lines)
    rows = _rows(data, tokenizer, length, reading)
    if evaluation is None:
        rows, kept = packing.split(rows, settings.eval_share, settings.seed)
    else:
        kept = _rows(evaluation, tokenizer, length, reading)
    for part in [rows] if kept is None else [rows, kept]:
        packing.check_vocabulary(part, model)
        if context is not None and part.shape[1] > context:
            raise UsageError(
                f"the rows have {part.shape[1]} tokens, and the model's context is {context}; cut them"
            )
    most = max(len(rows), BATCH)  # a small text can be read several times in a step
    if settings.batch > most:
        raise UsageError(
            f"--batch is {settings.batch}, and the data make {counted(len(rows), 'row')} of {rows.shape[1]} "
            f"tokens to train on; write {most} at most"
        )
    return Data(rows, kept, reading.skipped)


def mode_of(device: torch.device, settings: Training, processes: Processes) -> str:
    """How the processes share the work: "one", "ddp" (each holds all of the model) or "fsdp" (a part of it).

    Raises:
        UsageError: sharding is asked for, and cannot be done here.
    """
    if processes.count == 1:
        if settings.parallel == "fsdp":
            raise UsageError(
                "--parallel fsdp shards a model over the GPUs of several processes, and there is one; "
                "start with torchrun --nproc-per-node N -m restack train, or leave it out"
            )
        return "one"
    if device.type == "cpu" and settings.parallel == "fsdp":
        raise UsageError(
            "--parallel fsdp needs GPUs (on CPUs, Trainer runs DDP and does not say so); write --parallel ddp"
        )
    return "ddp" if device.type == "cpu" or settings.parallel == "ddp" else "fsdp"


def check_model(model: Any, settings: Training, mode: str) -> None:
    """Refuse a model that cannot be trained as it is asked for.

    Args:
        model: as it is going to be trained.
        settings: of the run.
        mode: of `mode_of`.

    Raises:
        ModelError: its weights are quantised, or none is to be trained.
        ViewError: its visits share weights, and FSDP cannot shard them.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not trained or not all(weight.is_floating_point() for weight in trained):
        raise ModelError("the model has no weights that could be trained; train adapters (--lora 8)")
    if getattr(model, "is_quantized", False) and settings.lora is None:
        raise ModelError("the model's weights are quantised and cannot be trained; train adapters (--lora 8)")
    if mode == "fsdp" and (name := _shared_in_layers(model)):
        raise ViewError(
            f"visits of this view share weights ({name} for one), which FSDP cannot shard; write --parallel "
            "ddp (each GPU holds the whole model), or train it as a restack-llama, which stores them once"
        )


def asked_for(
    model: Any, settings: Training, data: Data, processes: Processes, about: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides what a run comes to, by name; what a second command is compared with."""
    said = settings.to_json()
    del said["keep_checkpoints"]
    return {
        **about,
        **said,
        "processes": processes.count,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows": len(data.rows),
        "rows for evaluation": 0 if data.evaluation is None else len(data.evaluation),
        "tokens of a row": data.rows.shape[1],
        "digest of the tokens": data.digest,
        "digest of the weights": digest_of_weights(model),
    }


def digest_of_weights(model: Any) -> str:
    """The same for a model with the same weights; a few numbers of each are looked at."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        sample = weight.detach().flatten()[:SAMPLE].float().cpu().numpy().tobytes()
        found.update(f"{name}{tuple(weight.shape)}".encode() + sample)
    return found.hexdigest()[:16]


def names_of(data: Source | None) -> list[str] | None:
    """The names of files and datasets; None of rows."""
    if data is None or _are_rows(data):
        return None
    return [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]


def _rows(data: Source, tokenizer: Any, length: int, reading: Reading) -> Tensor:
    names = names_of(data)
    if names is None:
        return packing.given_rows(data)  # type: ignore[arg-type]
    if tokenizer is None:
        raise UsageError("the model has no tokenizer, and the data are text; add one to the model's folder")
    return packing.pack(packing.tokens_of(documents(names, reading), tokenizer, reading), length)


def _are_rows(data: Source) -> bool:
    if isinstance(data, str | Path):
        return False
    return isinstance(data, Tensor) or len(data) == 0 or not isinstance(data[0], str | Path)


def _shared_in_layers(model: Any) -> str | None:
    """The name of a weight that another layer object has too."""
    names = Counter[int]()
    for name, weight in model.named_parameters(remove_duplicate=False):
        names[id(weight)] += 1
        if names[id(weight)] > 1 and any(part.isdecimal() for part in name.split(".")):
            return str(name)
    return None
