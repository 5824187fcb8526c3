"""Whether a model's weights would fit in the memory that is free."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restack.errors import ModelError
from restack.llama.meta_layout import shard_files
from restack.recipes.location import CONFIG
from restack.recipes.reference import Reference

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def check_memory(
    reference: Reference, config: Any, dtype: Any, device: "torch.device", revision: str | None = None
) -> None:
    """Refuse a model whose weights would not fit, before the machine starts to swap.

    transformers maps safetensors into memory, which takes none that is not given back; but what it converts
    to another dtype it converts in the machine's own memory, before the model moves to its device.
    """
    import torch

    folder = Path(reference.location) if reference.is_local else _cached(reference.location, revision)
    stored = stored_bytes(folder) if folder else 0
    stored_dtype = getattr(config, "dtype", None) or torch.float32
    converts = dtype not in ("auto", stored_dtype) and getattr(config, "quantization_config", None) is None
    needed = stored * dtype.itemsize // stored_dtype.itemsize if converts else stored
    joined = stored if folder and _is_joined(folder) else 0
    free = {str(device): (needed + joined * converts, free_memory())}
    remedy = "try a smaller --dtype, or another --device"
    if device.type == "cuda":
        free = {str(device): (needed, torch.cuda.mem_get_info(device)[0])}
        if converts or joined:
            free["cpu"] = (needed * converts + joined, free_memory())
        if converts:
            remedy = "try --dtype auto, which converts nothing, or a smaller one"
    _refuse_what_is_short(reference, free, remedy)


def check_memory_quantised(
    reference: Reference, empty: Any, quantization_config: Any, device: "torch.device"
) -> None:
    """Refuse a model that would not fit once it is quantised, beside the largest tensor before it is.

    Args:
        empty: the model without weights (on the meta device), plain; it is given the quantised layers.
    """
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    largest = max(tensor.nbytes for tensor in empty.parameters())
    AutoHfQuantizer.from_config(quantization_config, pre_quantized=True).preprocess_model(model=empty)
    needed = sum(tensor.nbytes for tensor in empty.parameters()) + largest
    free = {"cpu": (needed, free_memory())}
    if device.type == "cuda":
        free[str(device)] = (needed, torch.cuda.mem_get_info(device)[0])
    _refuse_what_is_short(reference, free, "quantise it with fewer bits, or try another --device")


def _refuse_what_is_short(
    reference: Reference, free: Mapping[str, tuple[int, int | None]], remedy: str
) -> None:
    """Refuse a model that needs more than there is at a place: {place: (needed, available)}."""
    for place, (needed, available) in free.items():
        if available is not None and needed > available:
            raise ModelError(
                f"{reference.model} needs {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free on "
                f"{place}; {remedy}"
            )


def _is_joined(folder: Path) -> bool:
    """Whether Meta's shards are read and joined, in the machine's own memory, before anything else."""
    return not (folder / CONFIG).is_file() and len(shard_files(folder)) > 1


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder in which a model of the hub was stored when it was last fetched, if it was."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def stored_bytes(folder: Path) -> int:
    """Of the weights that would be read; other files may lie beside them (Meta's beside a config.json)."""
    single = folder / "model.safetensors"
    if single.is_file():
        return single.stat().st_size
    try:
        return int(json.loads((folder / f"{single.name}.index.json").read_text())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):  # no index, or none that can be used: count the files
        pass
    files = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    if not files and not (folder / CONFIG).is_file():  # Meta's own files are what is read
        files = [*shard_files(folder).values()]
    return sum(file.stat().st_size for file in files)


def free_memory() -> int | None:
    """Bytes that can be had without swapping, here and in our cgroup; None where the system does not tell."""
    known = [free for free in (_system_memory(), *_cgroup_memory()) if free is not None]
    return min(known, default=None)


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _cgroup_memory() -> Iterator[int]:
    """What the limits of our cgroup (version 2) and of those above it leave: containers, systemd, Slurm."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        ours = CGROUP / next(line[3:] for line in lines if line.startswith("0::")).strip("/")
    except (OSError, StopIteration):
        return
    for group in (ours, *ours.parents):
        if not group.is_relative_to(CGROUP):
            return
        with suppress(OSError, ValueError):  # no limit is no file, or says "max"
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            files = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            yield max(0, limit - used + files)  # the cache of files is given back when memory is short
