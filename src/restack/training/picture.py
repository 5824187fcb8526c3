"""The picture of a run: its losses over its steps."""

import math
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from restack.recipes.whole_file import whole_file
from restack.training.folder import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, EVALUATION, FAINT = "#3b6ea8", "#c0453a", "#b9cde3"
PARTS = 60  # of the run; the smooth line is a mean over two of them


def draw_log(log: list[Entry], path: Path, title: str, steps: int) -> None:
    """Draw the training loss of each step and smoothed, and the evaluation loss.

    Args:
        log: of `read_log`.
        path: of the picture; it is there as a whole or as it was.
        title: over it.
        steps: of the whole run.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trained = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    if trained:
        _draw_training(axes, trained)
    if evaluated:
        _draw_evaluation(axes, evaluated)
    axes.set_xlim(0, max(1, steps))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if trained or evaluated:
        axes.legend(frameon=False, loc="best")
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format=path.suffix.removeprefix("."))


def smooth(losses: list[float], reach: int) -> list[float]:
    """The mean of each loss and those before and after it: it does not lag behind as a running mean does.

    Args:
        losses: at equal distances.
        reach: how many on either side; the first and the last so many have no mean.
    """
    sums, width = list(accumulate(losses, initial=0.0)), 2 * reach + 1
    return [(sums[end] - sums[end - width]) / width for end in range(width, len(sums))]


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 or number > 1e9 else f"{number:,.0f}"


def _draw_training(axes: "Axes", points: list[tuple[int, float]]) -> None:
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    reach = len(losses) // PARTS
    if reach < 1:  # few enough to be seen one by one
        axes.plot(steps, losses, color=TRAINING, linewidth=1.6, label="training")
        return
    axes.plot(steps, losses, color=FAINT, linewidth=0.7, label="training, each step")
    smooth_steps = steps[reach : len(steps) - reach]
    axes.plot(smooth_steps, smooth(losses, reach), color=TRAINING, linewidth=1.8, label="training, smoothed")


def _draw_evaluation(axes: "Axes", points: list[tuple[int, float]]) -> None:
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    label = f"evaluation: {losses[-1]:.3f} (perplexity {_short(math.exp(min(losses[-1], 700)))})"
    axes.plot(
        steps, losses, color=EVALUATION, linewidth=1.4, marker="o", markersize=4, label=label, clip_on=False
    )
