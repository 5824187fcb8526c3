"""Running the parts of an experiment on two cores, and telling what came of them."""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
WORKERS = 2
LOSS = "loss, nats a token"
Curve = dict[int, float]  # evaluation loss by the steps before it


@dataclass(frozen=True)
class Options:
    """What the command line of every experiment says, and when it was read."""

    seeds: tuple[int, ...]
    quick: bool
    out: Path
    began: float = field(default_factory=time.perf_counter)


def options(description: str | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps: whether it runs at all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go (the committed ones)")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    return Options(SEEDS[:1] if chosen.quick else SEEDS, chosen.quick, chosen.out)


def run(part: Callable[..., Curve], seeds: Sequence[int], variants: Sequence[str], **more: Any) -> Any:
    """Every variant with every seed, two at a time: `{variant: [curve of each seed]}`.

    Args:
        part: called as part(seed, variant, folder to work in, **more), in a process of one thread.
        seeds, variants: all pairs of which are run.
        more: for every call.
    """
    with (
        ProcessPoolExecutor(WORKERS, get_context("spawn"), _settle) as pool,
        tempfile.TemporaryDirectory() as scratch,
    ):
        found = {
            (variant, seed): pool.submit(part, seed, variant, Path(scratch, f"{number}-{seed}"), **more)
            for number, variant in enumerate(variants)
            for seed in seeds
        }
        for (variant, seed), future in found.items():
            print(f"{variant}, seed {seed}: {future.result()}", flush=True)
        return {variant: [found[variant, seed].result() for seed in seeds] for variant in variants}


def _settle() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def mean(curves: Sequence[Curve], step: int) -> float:
    """Over the seeds."""
    return statistics.mean(curve[step] for curve in curves)


def told(curves: Sequence[Curve], step: int) -> str:
    """The mean over the seeds, and their standard deviation."""
    values = [curve[step] for curve in curves]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def columns(steps: int, first: str) -> dict[int, str]:
    """What a table shows of a run of so many steps: its beginning, by this name, its half and its end."""
    return {0: first, steps // 2: f"after {steps // 2} steps", steps: f"after {steps} steps"}


def table(found: Mapping[str, Sequence[Curve]], steps: Mapping[int, str]) -> str:
    """A row for each variant, a column for each of some steps, in Markdown."""
    lines = [f"| {LOSS} | {' | '.join(steps.values())} |", "|---" * (len(steps) + 1) + "|"]
    for variant, curves in found.items():
        cells = [told(curves, step) if step in curves[0] else "" for step in steps]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(width: float, height: float, across: int = 1) -> Any:
    """A figure in inches, and its axes: so many beside each other."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(1, across, figsize=(width, height), layout="constrained")


def draw(axes: Any, curves: Sequence[Curve], style: str, colour: str, label: str, scale: float = 1) -> None:
    """A line for the mean over the seeds, and dots for each; `scale` times the steps."""
    steps = sorted(curves[0])
    places = [scale * step for step in steps]
    axes.plot(places, [mean(curves, step) for step in steps], style, color=colour, label=label)
    for curve in curves:
        axes.plot(places, [curve[step] for step in steps], ".", color=colour, alpha=0.4)


def finish(name: str, chosen: Options, found: Mapping[str, Any], text: str) -> None:
    """Print the result; keep it as `name`.md and, with the loss of each seed, as `name`.json."""
    seconds = time.perf_counter() - chosen.began
    print(f"\n{text}\n\n{seconds:.0f} seconds")
    (chosen.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    result = {"seeds": chosen.seeds, "seconds": round(seconds), "losses": found}
    (chosen.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
