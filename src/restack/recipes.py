"""MODEL[@SPEC]: one way to name a model, or a view of one, for every command and every program."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restack import demo
from restack.errors import ModelError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def _exists(path: str) -> bool:
    """Whether there is such a file or folder; a text that cannot be a path, too long perhaps, is none."""
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises OSError on long names)


def open(
    reference: str | Reference,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load the model that a reference names; a view of it if the reference has a spec.

    Args:
        reference: a hub id, a folder, or `demo`; with @SPEC for a view.
        dtype: of the weights: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: as torch names it.
        revision: of a model on the hub.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: there is no such model, its architecture is unknown, its weights are not those that its
            config says, or it is a folder whose weights do not fit in free memory (a model of the hub is not
            checked).
        PlanError, ViewError: the spec is not one for this model.
    """
    from transformers import AutoModelForCausalLM

    from restack.plans import plan
    from restack.views import view

    if isinstance(reference, str):
        reference = parse_reference(reference)
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    config = open_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    if reference.spec is not None:
        plan(reference.spec, config)  # a wrong spec is told before the weights are read
    _check_memory(reference, config, torch_dtype, torch_device)
    with _told_in_one_line(reference):
        model, info = AutoModelForCausalLM.from_pretrained(
            reference.location,
            dtype=torch_dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model = model.to(torch_device).eval()
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers and says so in a warning
        raise ModelError(
            f"the weights of {reference.model} lack {len(missing)} of the tensors that its config.json "
            f"promises, {missing[0]} for one; correct the config, or get the weights again"
        )
    return model if reference.spec is None else view(model, reference.spec)


def open_config(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The config of the model that a reference names.

    Raises:
        ModelError: there is no such model, or it is of an unknown architecture.
    """
    from transformers import AutoConfig

    if isinstance(reference, str):
        reference = parse_reference(reference)
    folder = Path(reference.location)
    if not reference.is_local and not HUB_ID.fullmatch(reference.location):
        raise ModelError(f"there is no folder {reference.model}; a model is a folder, a hub id or demo")
    if reference.is_local and not (folder / "config.json").is_file():
        kind = "a folder without config.json" if folder.is_dir() else "a file"
        raise ModelError(
            f"{reference.model} is {kind}; a model is a folder with config.json and weights, or a hub id"
        )
    with _told_in_one_line(reference):
        return AutoConfig.from_pretrained(
            reference.location, revision=revision, trust_remote_code=trust_remote_code
        )


def open_empty(
    reference: str | Reference,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The model that a reference names, without weights (on the meta device): only its config is read."""
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(reference, str):
        reference = parse_reference(reference)
    torch_dtype = _dtype(dtype)
    config = open_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    if torch_dtype == "auto":
        torch_dtype = getattr(config, "dtype", None) or torch.float32
    with _told_in_one_line(reference), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch_dtype, trust_remote_code=trust_remote_code
        )


def open_tokenizer(
    reference: str | Reference, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of the model that a reference names.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoTokenizer

    if isinstance(reference, str):
        reference = parse_reference(reference)
    with _told_in_one_line(reference, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            reference.location, revision=revision, trust_remote_code=trust_remote_code
        )


@contextmanager
def _told_in_one_line(reference: Reference, part: str = "model") -> Iterator[None]:
    """Turn what transformers says in paragraphs into one line."""
    try:
        yield
    except Exception as error:  # whatever a broken model makes of a loader: each library has its own
        reason = " ".join(str(error).split())
        if "model type" in reason or "Unrecognized" in reason:
            reason = f"its architecture is not known to the installed transformers ({reason:.120}...)"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that its config.json says"
        elif "trust_remote_code" in reason:
            reason = "it comes with code of its own; if you trust that, run it with --trust-remote-code"
        elif isinstance(error, OSError) and not reference.is_local:
            reason = "no such folder, and the hub has no such model or cannot be reached"
        raise ModelError(f"cannot open the {part} of {reference.model}: {reason:.300}") from error


def _dtype(name: str) -> "torch.dtype | str":
    import torch

    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not known; write {', '.join(DTYPES)}")
    return "auto" if name == "auto" else getattr(torch, name)


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # each kind of device fails in its own way
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"device {name!r} cannot be used: {reason:.120}; write cpu, cuda or cuda:1"
        ) from None
    return device


def _check_memory(reference: Reference, config: Any, dtype: Any, device: "torch.device") -> None:
    """Refuse a model whose weights would not fit, before the machine starts to swap."""
    import torch

    stored = _stored_bytes(Path(reference.location)) if reference.is_local else 0
    stored_dtype = getattr(config, "dtype", None) or torch.float32
    needed = stored if dtype == "auto" else stored * dtype.itemsize // stored_dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is not None and needed > free:
        raise ModelError(
            f"{reference.model} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device}; "
            "try a smaller --dtype, or another --device"
        )


def _stored_bytes(folder: Path) -> int:
    """Of the weights that transformers would read; other files may lie beside them (Meta's, for example)."""
    single = folder / "model.safetensors"
    if single.is_file():
        return single.stat().st_size
    try:
        return int(json.loads((folder / f"{single.name}.index.json").read_text())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):  # no index, or none that can be used: count the files
        pass
    files = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
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
