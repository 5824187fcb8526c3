"""`restack scan`: which candidates, who works, and how it is told."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from restack.cli.loading import Source
from restack.engines.ray_pool import RayPool
from restack.errors import UsageError
from restack.recipes.memory import free_memory
from restack.scanning import Asker, Candidate, Making, grid, make_probes, named, read_specs
from restack.scanning.asking import Answers
from restack.scanning.beam import Beam
from restack.scanning.findings import Findings
from restack.scanning.pool import LocalPool, cores
from restack.scanning.probes.function import Function
from restack.scanning.probes.making import check_probe
from restack.scanning.reading import LOGITS, MEMORY, batch_tokens
from restack.scanning.results import Results, check_folder
from restack.scanning.scanner import InProcess, Watch, Workers
from restack.scanning.scanner import run as run_scan
from restack.scanning.setting import check_objective, settle

__all__ = ["Asked", "Beam", "Candidates", "Making", "Work", "run"]

INTERRUPTED = 130  # exit status
ROOM = 0.7  # of free memory, for all workers
IMPORTS = 5 * 10**8  # bytes of a process that has imported everything


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which stacks are tried."""

    repeats: list[int]
    damps: list[float]
    skips: bool
    widest: int | None
    specs: list[str]
    file: Path | None
    beam: Beam | None

    def of(self, depth: int) -> list[Candidate]:
        """Of a model with so many layers."""
        found = grid(depth, repeats=self.repeats, damps=self.damps, skips=self.skips, widest=self.widest)
        found += named(depth, self.specs)
        return found if self.file is None else found + read_specs(self.file.expanduser(), depth)


@dataclass(frozen=True, slots=True)
class Asked:
    """What they are asked."""

    probes: list[str]
    objective: list[str]
    held_out: float
    seed: int
    making: Making


@dataclass(frozen=True, slots=True)
class Work:
    """Who works; None leaves it to the machine."""

    workers: int | None
    threads: int | None
    ray: bool
    memory: int | None


def run(source: Source, candidates: Candidates, asked: Asked, work: Work, out: Path, as_json: bool) -> None:
    """Scan, and tell what came of it.

    Raises:
        typer.Exit: with status 130 when somebody stopped it.
    """
    for name in asked.probes:
        check_probe(name)
    check_folder(out)
    check_objective(asked.probes, asked.objective)
    for option, value in (
        ("--include-path", asked.making.include_path),
        ("--num-fewshot", asked.making.few_shot),
    ):
        if value is not None and not any(name.startswith("task:") for name in asked.probes):
            raise UsageError(f"{option} is for tasks, and no probe is one; see --probe")
    source.check_place()
    tried = candidates.of(len(source.plan))  # a wrong one is told before weights are read
    base, model, tokenizer = source.load()
    count = _workers(work, model, source.device)
    threads = work.threads or max(1, torch.get_num_threads() // count)  # OMP_NUM_THREADS is heard
    torch.set_num_threads(threads)
    probes = make_probes(asked.probes, model, tokenizer, asked.making)
    name = source.reference.model if source.plan.is_identity else f"{source.reference.model}@{source.plan}"
    setting = settle(
        model,
        tokenizer,
        probes,
        name=name,
        objective=asked.objective,
        held_out=asked.held_out,
        seed=asked.seed,
    )
    results = Results(setting.depth, out)
    make = partial(_asker, replace(source), asked.probes, asked.making, work.memory, threads)
    pool: Any = None
    here: Workers | None = None
    if count == 1 and not work.ray:
        here = InProcess(Asker(model, probes, work.memory))
    else:
        del base, model, probes  # each worker has its own
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        gpus = int(source.device.startswith("cuda"))
        pool = RayPool(make, count, gpus=gpus) if work.ray else LocalPool(make, count)
    try:
        with _watching() as watch:
            if here is not None:
                findings = run_scan(setting, tried, results, here, beam=candidates.beam, watch=watch)
            else:
                with pool:
                    findings = run_scan(setting, tried, results, pool, beam=candidates.beam, watch=watch)
    except KeyboardInterrupt:
        done = len(results.records)
        print(f"restack: stopped; {done} scored are kept, and the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        from restack.scanning.reporting import summary

        json.dump(summary(findings), sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        _tell(findings, out)
    if findings.verdict.outcome == "nothing":  # all failed
        raise typer.Exit(1)


def _tell(findings: Findings, out: Path) -> None:
    from restack.scanning.reporting import headline

    print(headline(findings))
    failed = sum(entry.error is not None for entry in findings.entries)
    if failed:
        print(f"{failed} of {len(findings.entries)} candidates failed; the report says why.")
    print(f"{out / 'report.html'} has it all; {out / 'report.md'} too.")


def _asker(
    source: Source, probes: list[str], making: Making, memory: int | None, threads: int, number: int
) -> Asker:
    """A worker: a model and the probes of its own, made from their names."""
    torch.set_num_threads(threads)
    if source.device == "cuda":  # with Ray, an actor sees one alone
        source = replace(source, device=f"cuda:{number % max(1, torch.cuda.device_count())}")
    _, model, tokenizer = source.load()
    made = make_probes(probes, model, tokenizer, making)
    for probe in made:
        if isinstance(probe, Function):
            probe.ask(model)  # or the first candidate would say how many questions there are
    return Asker(model, made, memory)


def _workers(work: Work, model: Any, device: str) -> int:
    """How many workers, if the user does not say: one a GPU, or one a core where memory holds the models."""
    if work.workers is not None:
        return work.workers
    if device == "cuda":
        return max(1, torch.cuda.device_count())
    if device != "cpu":
        return 1
    vocabulary = model.get_input_embeddings().num_embeddings
    logits = batch_tokens(vocabulary) * vocabulary * model.dtype.itemsize + 3 * 4 * LOGITS
    size = sum(tensor.nbytes for tensor in model.parameters()) + logits + (work.memory or MEMORY) + IMPORTS
    free = free_memory()
    return 1 if free is None else max(1, min(cores(), int(ROOM * free // size)))


@contextmanager
def _watching() -> Iterator[Watch]:
    """What tells the user how it goes: a bar in a terminal, and otherwise nothing."""
    if not sys.stderr.isatty():
        yield Watch()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress)


class Bar(Watch):
    """A bar for each part of the work, with the rate and the time that is left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: Any = None

    def begin(self, what: str, total: int, done: int) -> None:
        self.task = self.progress.add_task(what, total=total, completed=done, rate="")

    def advance(self, candidate: Candidate, answers: Answers) -> None:
        speed = self.progress.tasks[self.task].speed
        rate = "" if not speed else f"{speed:.2g}/s" if speed < 10 else f"{speed:.0f}/s"
        self.progress.update(self.task, advance=1, rate=rate)
        if answers.error is not None:
            self.progress.console.print(
                f"{candidate.label} failed: {answers.error}", highlight=False, markup=False, soft_wrap=True
            )
