"""What every benchmark here needs: options, interleaved medians, a table with its conditions, the JSON.

    claims = [Claim("build a view", ours=0.04, peer=2.1, unit="s", goal=0.5)]
    finish(options, conditions(layers=80), claims)

prints the table and, with `--json FILE`, writes {"conditions": {...}, "claims": [{"name", "ours", "peer",
"unit", "ratio", "goal", "met"}]}.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Claim:
    """A measured figure beside the peer's. Less is better, as of seconds and bytes, unless `more` is set."""

    name: str
    ours: float
    peer: float | None
    unit: str
    goal: float | None = None  # ours must be below it (above it, if more is better)
    more: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer."""
        if self.peer is None:
            return None
        better, worse = (self.ours, self.peer) if self.more else (self.peer, self.ours)
        return better / worse if worse else None

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ours > self.goal if self.more else self.ours < self.goal

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["more"]
        return fields | {"ratio": self.ratio, "met": self.met}


class TokenTimes(BaseStreamer):
    """When the prompt, each token and the end were there, as `time.perf_counter` tells it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(time.perf_counter())

    def end(self) -> None:
        self.seen.append(time.perf_counter())


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the conditions and claims there"
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs; under a minute")
    return parser


def conditions(**own: Any) -> dict[str, Any]:
    """The machine and the versions, and what the benchmark adds of its own."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    } | own


def interleaved(
    measures: Mapping[str, Callable[[], Mapping[str, float]]], runs: int
) -> dict[str, dict[str, float]]:
    """The median of every figure that each measure returns; they take turns, after one turn to warm up."""
    figures: dict[str, list[Mapping[str, float]]] = {name: [] for name in measures}
    for run in range(runs + 1):
        for name, measure in measures.items():
            measured = measure()
            if run:
                figures[name].append(measured)
    return {
        name: {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
        for name, rows in figures.items()
    }


def finish(json_file: Path | None, conditions: Mapping[str, Any], claims: Sequence[Claim], peer: str) -> None:
    """Print the table, with the conditions under it, and write the JSON if asked for."""
    table = Table(caption="\n".join(f"{name}: {value}" for name, value in conditions.items()))
    table.caption_justify = "left"
    table.add_column("")
    for heading in ("restack", peer, "better", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    for claim in claims:
        table.add_row(
            claim.name,
            _quantity(claim.ours, claim.unit),
            _quantity(claim.peer, claim.unit),
            "" if claim.ratio is None else f"{claim.ratio:.3g}x",
            "" if claim.goal is None else f"{'>' if claim.more else '<'} {_quantity(claim.goal, claim.unit)}",
            {True: "yes", False: "NO", None: ""}[claim.met],
        )
    Console().print(table)
    if json_file is not None:
        result = {"conditions": dict(conditions), "claims": [claim.to_json() for claim in claims]}
        part = json_file.with_name(json_file.name + ".part")
        part.write_text(json.dumps(result, indent=2) + "\n")
        part.replace(json_file)


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _cpu() -> str:
    """The processor's name, which `platform` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )
