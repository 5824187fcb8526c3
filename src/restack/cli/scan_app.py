"""The command `restack scan`: its options; what it does is in `restack.cli.scan`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o
from restack.errors import UsageError

MOST_THREADS = 1024
CANDIDATES, ASKED, WORK = "Candidates", "Questions", "Work"


def _whole_numbers(option: typer.CallbackParam, text: str) -> str:
    numbers(text, option.opts[0])
    return text


def _real_numbers(option: typer.CallbackParam, text: str) -> str:
    numbers(text, option.opts[0], float)
    return text


def numbers(text: str, option: str, kind: type = int) -> list[float]:
    """The numbers in a list such as 2,3.

    Raises:
        UsageError: it is none.
    """
    try:
        found = [kind(part) for part in text.split(",")]
        if not all(map(math.isfinite, found)):
            raise ValueError
        return found
    except (ValueError, OverflowError):
        example = "2,3" if kind is int else "0.5,1"
        raise UsageError(f"{option} is {text!r}; write numbers and commas, as in {example}") from None


def _memory(size: str | None) -> str | None:
    if size is not None:
        o.size_in_bytes(size)
    return size


def scan(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where results and the report go: not there yet, empty, or a scan of the same model and "
            "probes, which then goes on.",
        ),
    ],
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    blocks: Annotated[
        bool, typer.Option(help="All blocks (i,j) run again.", rich_help_panel=CANDIDATES)
    ] = True,
    repeats: Annotated[
        str,
        typer.Option(
            metavar="TIMES", callback=_whole_numbers, help="How often: 2 or 2,3.", rich_help_panel=CANDIDATES
        ),
    ] = "2",
    damp: Annotated[
        str,
        typer.Option(
            metavar="FACTORS",
            callback=_real_numbers,
            help="How much runs after the first count: 0.5,0.7,1.",
            rich_help_panel=CANDIDATES,
        ),
    ] = "1",
    skips: Annotated[
        bool, typer.Option("--skips", help="All blocks left out, too.", rich_help_panel=CANDIDATES)
    ] = False,
    widest: Annotated[
        int | None, typer.Option(help="Layers of the widest block.", rich_help_panel=CANDIDATES)
    ] = None,
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            metavar="SPEC",
            help="A plan to try, in any notation; may be repeated.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    specs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plans to try, one a line.", rich_help_panel=CANDIDATES),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(
            metavar="WIDTH",
            help="Put the best blocks together; this many stacks of each size are gone on with.",
            rich_help_panel=CANDIDATES,
        ),
    ] = None,
    beam_blocks: Annotated[
        int, typer.Option(help="Blocks of the largest stack.", rich_help_panel=CANDIDATES)
    ] = 3,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            "-p",
            metavar="PROBE",
            help="What to ask; may be repeated. text[:FILE], choice:FILE.jsonl, exact:FILE.jsonl, math[:N], "
            "demo[:FAMILY,...], task:NAME (lm-eval), function:FILE.py:NAME. Without: demo for the demo "
            "model, text for others.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="PROBE+PROBE",
            help="What the best is chosen by: the first probe, if nothing is said.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(help="The share of questions kept for the best and the base.", rich_help_panel=ASKED),
    ] = 0.5,
    questions: Annotated[
        int | None,
        typer.Option(help="Of a probe that makes its own, or of a task.", rich_help_panel=ASKED),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Of a text that are read at once.", rich_help_panel=ASKED),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of questions, and of those held out.", rich_help_panel=ASKED)
    ] = 0,
    include_path: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where more lm-eval tasks are.", rich_help_panel=ASKED),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            "--num_fewshot",
            help="Solved examples before each question of a task.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes with a model each; without: one a GPU, or one a core if memory holds them.",
            rich_help_panel=WORK,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Of a worker; without: the cores shared out.", rich_help_panel=WORK),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Work on a Ray cluster: that of RAY_ADDRESS, or one of its own on this machine.",
            rich_help_panel=WORK,
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            callback=_memory,
            help="Of hidden states that a worker keeps: 500MB. Without: 1 GiB.",
            rich_help_panel=WORK,
        ),
    ] = None,
    as_json: o.AsJson = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Find the layers worth repeating, or leaving out, and whether it is more than chance.

    The same command goes on with a scan that was stopped. The best stack is asked again, with questions that
    it was not chosen by; that figure is the one to quote.
    """
    for name, value, least in (
        ("--workers", workers, 1),
        ("--threads", threads, 1),
        ("--questions", questions, 1),
        ("--window", window, 2),
        ("--num-fewshot", num_fewshot, 0),
        ("--beam", beam, 1),
        ("--beam-blocks", beam_blocks, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}; write {least} or more")
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed is {seed}; write a number from 0 to {2**32 - 1}")
    if threads is not None and threads > MOST_THREADS:
        raise UsageError(f"--threads is {threads}; write at most {MOST_THREADS}")
    if not 0 < held_out < 1:
        raise UsageError(f"--held-out is {held_out:g}; write a share between 0 and 1")
    from restack.cli import loading, scan

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    candidates = scan.Candidates(
        repeats=[int(times) for times in numbers(repeats, "--repeats")] if blocks else [],
        damps=numbers(damp, "--damp", float),
        skips=skips,
        widest=widest,
        specs=spec or [],
        file=specs,
        beam=None if beam is None else scan.Beam(beam, beam_blocks),
    )
    asked = scan.Asked(
        probes=probe or (["demo"] if source.is_demo else ["text"]),
        objective=objective.split("+") if objective else [],
        held_out=held_out,
        seed=seed,
        making=scan.Making(questions, seed, window, include_path, num_fewshot),
    )
    work = scan.Work(workers, threads, ray, None if memory is None else o.size_in_bytes(memory))
    scan.run(source, candidates, asked, work, out.expanduser(), as_json)
