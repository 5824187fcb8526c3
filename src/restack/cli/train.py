"""`restack train`: a model, a view or adapters, trained on text."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from restack.cli.loading import Source
from restack.cli.units import in_parameters
from restack.errors import RestackError
from restack.plans.pointing import counted
from restack.training.adapters import has_adapters
from restack.training.documents import check_names
from restack.training.engine import Job
from restack.training.folder import Entry, Folder
from restack.training.preparing import mode_of
from restack.training.processes import EVERYWHERE, Processes, check_extra
from restack.training.run import Result, Watch, train
from restack.training.settings import Training

SECONDS = 10.0  # between two lines of progress, where nobody watches a bar
REFUSED, INTERRUPTED = 2, 130  # exit statuses


def run(source: Source, data: list[str], evaluation: list[str] | None, out: Path, settings: Training) -> None:
    """Train, and say how it goes; of several processes, the first alone speaks.

    Raises:
        typer.Exit: with status 130 when somebody stopped it.
    """
    check_extra("accelerate", *(["peft"] if settings.lora else []))
    processes = Processes.of_environment()
    processes.join(on_cpu=not source.device.startswith("cuda"))
    try:
        result = _trained(source, data, evaluation, out, settings, processes)
    except RestackError as error:
        if processes.is_first:
            raise
        if not vars(error).get(EVERYWHERE):
            print(f"restack: process {processes.rank}: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    finally:
        processes.leave()
    if processes.is_first:
        tell_end(result, out)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


def _trained(
    source: Source,
    data: list[str],
    evaluation: list[str] | None,
    out: Path,
    settings: Training,
    processes: Processes,
) -> Result:
    import torch

    processes.together(lambda: check_names([*data, *(evaluation or [])]))  # before the model is loaded
    processes.together(Folder(out.expanduser()).check)
    processes.together(source.check_place)
    device = source.device
    if processes.count > 1 and device == "cuda":
        device = f"cuda:{processes.local_rank}"
    mode = processes.together(lambda: mode_of(torch.device(device), settings, processes))
    source.device = "cpu" if mode == "fsdp" else device  # each process moves its part alone
    if source.dtype == "auto" and settings.lora is None:
        source.dtype = "float32"  # small steps would be lost in the rounding of a shorter one
    _, model, tokenizer = processes.together(source.load)
    name = source.reference.model if source.plan.is_identity else f"{source.reference.model}@{source.plan}"
    with watching() as watch:
        return train(
            model,
            tokenizer,
            data,
            out,
            settings,
            evaluation=evaluation or None,
            name=name,
            device=device,
            watch=watch,
        )


@contextmanager
def watching() -> Iterator[Watch]:
    """What tells the user how it goes: a bar in a terminal, and otherwise a line now and then."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress)


class Lines(Watch):
    """A line at the beginning, every few seconds, and for each evaluation."""

    def __init__(self) -> None:
        self.told, self.steps = 0.0, 0

    def begin(self, job: Job, done: int) -> None:
        self.steps, self.told = job.course.steps, time.monotonic()
        for line in opening(job, done):
            self.tell(line)

    def entry(self, entry: Entry) -> None:
        if "eval_loss" in entry:
            self.tell(f"step {entry['step']} of {self.steps}: {described(entry)}")
        elif time.monotonic() - self.told >= SECONDS:
            self.told = time.monotonic()
            self.tell(f"step {entry['step']} of {self.steps}: {described(entry)}")

    def tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bar(Lines):
    """The same over a bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress, self.task = progress, progress.add_task("", start=False, total=None)

    def begin(self, job: Job, done: int) -> None:
        super().begin(job, done)
        self.progress.update(self.task, total=self.steps, completed=done)
        self.progress.start_task(self.task)

    def entry(self, entry: Entry) -> None:
        if "eval_loss" in entry:
            super().entry(entry)
        else:
            self.progress.update(self.task, completed=entry["step"], description=described(entry))

    def tell(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def described(entry: Entry) -> str:
    """A line of the log, for people."""
    if "eval_loss" in entry:
        return f"evaluation loss {entry['eval_loss']:.4f}, perplexity {entry['perplexity']:.4g}"
    speed = round(entry["tokens"] / max(entry["seconds"], 1e-9))
    return f"loss {entry['loss']:.4f}, learning rate {entry['lr']:.2e}, {speed:,} tokens/s"


def opening(job: Job, done: int) -> list[str]:
    """What is going to be done, in lines."""
    course, data = job.course, job.data
    trained = sum(weight.numel() for weight in job.model.parameters() if weight.requires_grad)
    what = "in adapters" if has_adapters(job.model) else "in all weights"
    rows = f"{counted(len(data.rows), 'row')} of {job.length} tokens"
    kept = 0 if data.evaluation is None else len(data.evaluation)
    skipped = f"; {counted(data.skipped, 'bad line')} skipped" if data.skipped else ""
    lines = [
        how(job),
        f"{in_parameters(trained)} parameters to train, {what}; {rows}, {kept} more for evaluation{skipped}",
        f"{counted(course.steps, 'step')} of {counted(course.rows_per_step, 'row')} "
        f"({course.rows_per_step * job.length:,} tokens), learning rate {course.lr:g}",
    ]
    return [*lines, f"going on after step {done}"] if done else lines


def how(job: Job) -> str:
    """Which processes do it, and what each of them holds."""
    count, device = job.processes.count, job.device.type
    backend = "gloo" if device == "cpu" else "nccl"
    match job.mode:
        case "ddp":
            return f"{count} processes, data parallel (DDP, {backend}): each holds the whole model"
        case "fsdp":
            return f"{count} processes, fully sharded (FSDP2, {backend}): each holds a part of the model"
    return f"1 process on {job.device}"


def tell_end(result: Result, out: Path) -> None:
    """What came of it, and what to do next."""
    if not result.finished:
        print(
            f"restack: stopped after step {result.steps} and saved; the same command goes on from there",
            file=sys.stderr,
        )
        return
    losses, evaluations = result.losses, list(result.evaluations.values())
    end = f"{out}: {counted(result.steps, 'step')}, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
    if evaluations:
        end += f", evaluation loss {evaluations[0]:.4f} -> {evaluations[-1]:.4f}"
    print(end)
    print(f"restack chat {out} talks with it; {out / 'loss.png'} shows how it went")
