"""The picture of what a gain costs: each stack, and the front of those that none beats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from restack.scanning.findings import Findings
from restack.scanning.reporting.heat_map import FAINT, INK, plain, tidy
from restack.scanning.reporting.order import FEW, front, front_line, lowest, with_probe
from restack.scanning.reporting.wording import Wording, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BETTER, WORSE, NEITHER = "#3b6ea8", "#c0453a", "#bdbdbd"
MANY = 300  # points that are drawn smaller
MOST_LABELS, MOST_COVERED = 9, 4  # names, and points that a name may hide
BESIDE = ((9, -4), (-9, -4))
NEAR = ((0, 9), (0, -17), (9, 5), (-9, 5), (9, -13), (-9, -13))
OFFSETS = (*NEAR, (0, 24), (-16, 20), (16, 20), (-30, 14), (30, 14), (-45, 26), (45, 26), (0, -34), (0, 40))


def draw_pareto(findings: Findings, words: Wording) -> "Figure":
    """Draw each stack's gain on a probe against its cost, and the front of those that none beats in both.

    What is not beyond chance is grey. Where many stacks ruin the model, the picture ends above them and says
    how many there are; where there are few stacks, it has their names and 95% intervals.

    Args:
        findings: of the scan; a candidate has a score on the probe.
        words: the probe's.
    """
    from matplotlib.figure import Figure

    pairs = with_probe(findings.entries, words.facts.name)
    bottom = lowest(findings, words.facts.name)
    shown = [(entry, compared) for entry, compared in pairs if compared.gain >= bottom]
    costs = np.array([entry.cost for entry, _ in shown])
    gains = np.array([compared.gain for _, compared in shown])
    significant = np.array([compared.is_significant for _, compared in shown])
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    size = 26 if len(shown) < MANY else 9
    kinds = [
        (~significant, NEITHER, "neither beyond chance"),
        (significant & (gains > 0), BETTER, "better"),
        (significant & (gains <= 0), WORSE, "worse"),
    ]
    for of, colour, name in kinds:
        if of.any():
            axes.scatter(costs[of], gains[of], size, colour, label=name, linewidths=0, alpha=0.85, zorder=2)
    heights = [*gains, 0.0]
    if len(pairs) <= FEW:
        for entry, compared in shown:
            ends = words.gain_reach(compared)
            heights += ends
            colour = NEITHER if not compared.is_significant else BETTER if compared.gain > 0 else WORSE
            axes.plot([entry.cost] * 2, ends, color=colour, linewidth=1.4, zorder=1.5)
    on_front = front(list(zip(costs, gains, significant, strict=True)))
    line = front_line([(costs[n], gains[n], significant[n]) for n in on_front])
    if len(line) > 1:
        right, height = zip(*line, strict=True)
        axes.plot(right, height, color=INK, linewidth=1.1, drawstyle="steps-post", label="front", zorder=3)
    _draw_base(axes, findings, words)
    below = len(pairs) - len(shown)
    if below:
        told = f"{below} {'stack' if below == 1 else 'stacks'} further below"
        axes.text(0.99, 0.015, told, transform=axes.transAxes, ha="right", color=FAINT, fontsize="small")
    bottom = min(bottom, *heights)
    room = max(heights) - bottom
    axes.set_ylim(bottom - 0.02 * room, max(heights) + 0.12 * room)
    seen = np.append(costs, 1.0)
    margin = 0.05 * (np.ptp(seen) or 1.0)
    axes.set_xlim(seen.min() - margin, seen.max() + margin)
    _name_axes(axes, findings, words)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    named = range(len(shown)) if len(pairs) <= FEW else on_front
    names = [(costs[n], gains[n], shortened(shown[n][0].candidate.label, 28)) for n in named]
    offsets = (*BESIDE, *OFFSETS) if len(pairs) <= FEW else OFFSETS  # their intervals are above and below
    _label_points(figure, axes, names, np.column_stack([costs, gains]), offsets)
    return figure


def _draw_base(axes: "Axes", findings: Findings, words: Wording) -> None:
    base = findings.base.compared.get(words.facts.name)
    told = "base" if base is None else f"base ({words.number(base.score.mean)})"
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.scatter([1], [0], marker="s", s=60, color=INK, label=told, zorder=5)


def _name_axes(axes: "Axes", findings: Findings, words: Wording) -> None:
    facts = words.facts
    axes.set_xlabel("cost: layer visits, relative to the base's")
    measure = plain(facts.measure)
    axes.set_ylabel(f"how far below the base: {measure}" if facts.lower_is_better else f"gain in {measure}")
    asked = f"what a gain costs: {plain(facts.name)}, {facts.searched} questions"
    axes.set_title(f"{plain(findings.model)}\n{asked}", loc="left", fontsize="medium")
    tidy(axes)


def _label_points(
    figure: "Figure",
    axes: "Axes",
    points: list[tuple[float, float, str]],
    others: np.ndarray,
    offsets: Sequence[tuple[int, int]],
) -> None:
    """Name points, the highest first, each where it covers no other name and few points; or not at all.

    Args:
        figure: whose layout is fixed by this, or the names would be moved by what they move.
        axes: the points'.
        points: at which x and y, and their names.
        others: shape (points, 2), all that are drawn.
        offsets: of a name from its point, in points, the best first.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    frame, drawn = axes.get_window_extent(), axes.transData.transform(others)
    taken: list[Bbox] = []
    for cost, gain, name in sorted(points, key=lambda point: -point[1])[:MOST_LABELS]:
        best, covered = None, MOST_COVERED
        for offset in offsets:
            label = axes.annotate(
                plain(name), (cost, gain), offset, textcoords="offset points", fontsize="small", color=INK,
                ha={-1: "right", 0: "center", 1: "left"}[int(np.sign(offset[0]))], zorder=6,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip
            label.get_window_extent()  # which moves the text to its place
            box = Text.get_window_extent(label).expanded(1.05, 1.1)  # without the line to the point
            is_inside = (
                frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            )
            under = int(((drawn > box.min) & (drawn < box.max)).all(axis=1).sum())
            if is_inside and under < covered and not any(box.overlaps(other) for other in taken):
                if best is not None:
                    best[0].remove()
                best, covered = (label, box), under
            else:
                label.remove()
        if best is not None:
            taken.append(best[1])
