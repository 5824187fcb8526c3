"""The heat map of a probe: what running a block again, or leaving it out, does to its score."""

from typing import TYPE_CHECKING

import numpy as np

from restack.scanning.candidates import Candidate
from restack.scanning.findings import Entry, Findings
from restack.scanning.reporting.order import Variant, best_beyond_chance, limit, variants, with_probe
from restack.scanning.reporting.wording import Wording, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# Blue and red differ for the colour-blind too; what is beyond chance is never pale enough to pass for grey.
BETTER, WORSE = ("#b3d0ec", "#5a8fc7", "#1a4b8c"), ("#f7cfc0", "#da8168", "#a8372c")
GREY = ("#ececec", "#9e9e9e")
INK, FAINT = "#222222", "#8a8a8a"
SHADES = 128  # of each
MOST_TOLD = 13  # layers of a model whose map has room for numbers
COLUMNS = 3


def draw_heat_map(findings: Findings, words: Wording) -> "Figure | None":
    """Draw a probe's panels: start of the block downwards, its end rightwards, the gain as a colour.

    Blue is better than the base and red worse, with one scale for all panels; what is not beyond chance is
    grey, the darker the further from the base.

    Args:
        findings: of the scan.
        words: the probe's.

    Returns:
        The figure; None if no block has a score.
    """
    from matplotlib.figure import Figure

    panels = [variant for variant in variants(findings) if variant.has_blocks]
    if not any(with_probe(panel.entries, words.facts.name) for panel in panels):
        return None
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    side = 5.4 if len(panels) == 1 else 4.6
    height = rows * side + (1.2 if columns == 1 else 0.9)
    figure = Figure(figsize=(columns * side + 1.6, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    end, best = limit(findings, words.facts.name), best_beyond_chance(findings, words.facts.name)
    for panel, variant in zip(axes, panels, strict=False):
        _draw_panel(panel, findings, variant, words, end, best)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    _draw_scale(figure, list(axes), findings, words, end)
    _draw_legend(figure, findings, words, ncols=3 if columns == 1 else 6)
    facts, line = words.facts, "\n" if columns == 1 else ", "
    asked = f"{facts.name}: {facts.measure}, {facts.searched} questions, {words.direction}"
    figure.suptitle(f"{plain(findings.model)}{line}{plain(asked)}", x=0.008, ha="left", fontsize="large")
    return figure


def colour_map() -> "ListedColormap":
    """From what is much worse to what is much better. There is a step in the middle: nothing is white."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    worse = LinearSegmentedColormap.from_list("worse", WORSE[::-1], SHADES)(np.linspace(0, 1, SHADES))
    better = LinearSegmentedColormap.from_list("better", BETTER, SHADES)(np.linspace(0, 1, SHADES))
    return ListedColormap(np.concatenate([worse, better]), "gain")


def colour(gain: float, is_significant: bool, end: float) -> tuple[float, ...]:
    """The colour of a cell, red, green, blue and opacity.

    Args:
        gain: over the base.
        is_significant: whether it is beyond chance; it is grey if not.
        end: the gain at which colours end.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    if is_significant:
        return tuple(colour_map()(float(Normalize(-end, end, clip=True)(gain))))
    grey = LinearSegmentedColormap.from_list("grey", GREY)
    return tuple(grey(min(1.0, abs(gain) / end)))


def plain(text: str) -> str:
    """A text for matplotlib, which would take what stands between dollars for a formula."""
    return shortened(text, 80).replace("$", r"\$")


def ticks(depth: int) -> range:
    """Layer numbers along an axis: a dozen or so, at round numbers."""
    return range(
        0, depth + 1, next((step for step in (1, 2, 4, 5, 10, 20) if depth / step <= 14), depth // 12)
    )


def tidy(axes: "Axes") -> None:
    """Take away what tells nothing."""
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def place_of(candidate: Candidate) -> tuple[int, int]:
    """The row and the column of a candidate's cell: its block."""
    assert candidate.block is not None
    return candidate.block


def brief(gain: float) -> str:
    """A gain in the four or five characters that a cell has room for."""
    if gain == 0 or abs(gain) < 0.0005:
        return "0"
    digits = 0 if abs(gain) >= 9.95 else 1 if abs(gain) >= 0.995 else 2 if abs(gain) >= 0.0095 else 3
    told = f"{gain:+.{digits}f}"
    return told.replace("0.", ".", 1) if digits > 1 else told


def _draw_panel(
    panel: "Axes", findings: Findings, variant: Variant, words: Wording, end: float, best: Entry | None
) -> None:
    depth = findings.depth
    cells = np.ones((depth, depth + 1, 4))
    known = with_probe(variant.entries, words.facts.name)
    for entry, compared in known:
        cells[place_of(entry.candidate)] = colour(compared.gain, compared.is_significant, end)
    panel.imshow(cells, interpolation="nearest", aspect="equal", zorder=1)
    if depth <= MOST_TOLD:
        for entry, compared in known:
            i, j = place_of(entry.candidate)
            is_dark = cells[i, j, :3] @ (0.3, 0.59, 0.11) < 0.55
            told = brief(compared.gain)
            size = min(9.0, 84 / depth) * min(1.0, 4 / len(told))
            ink = "white" if is_dark else INK
            panel.text(j, i, told, ha="center", va="center", fontsize=size, color=ink, zorder=3)
    scored = {place_of(entry.candidate) for entry, _ in known}
    unscored = [place for entry in variant.entries if (place := place_of(entry.candidate)) not in scored]
    if unscored:
        panel.scatter(
            [j for _, j in unscored],
            [i for i, _ in unscored],
            marker="x",
            s=_points(depth),
            color=FAINT,
            lw=1,
        )
    panel.plot([0, depth - 1], [0, depth - 1], color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=2)
    panel.scatter([0], [0], marker="s", s=_points(depth), color=INK, zorder=4, clip_on=False)
    if best is not None and best in variant.entries:
        _outline(panel, best.candidate, depth)
    panel.set_title(_title(variant, words), loc="left", fontsize="medium")
    panel.set_xticks(ticks(depth))
    panel.set_yticks([tick for tick in ticks(depth) if tick < depth])
    panel.set_xlim(-0.8, depth + 0.5)
    panel.set_ylim(depth - 0.5, -0.8)
    panel.set_xlabel("end of the block, j (not in it)")
    panel.set_ylabel("start of the block, i")
    panel.tick_params(length=2, color=FAINT, labelsize="small")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)


def _title(variant: Variant, words: Wording) -> str:
    known = [compared for _, compared in with_probe(variant.entries, words.facts.name)]
    better = sum(compared.is_significant and compared.gain > 0 for compared in known)
    worse = sum(compared.is_significant and compared.gain < 0 for compared in known)
    return f"{variant.name}: {better} better, {worse} worse, {len(known) - better - worse} neither"


def _outline(panel: "Axes", candidate: Candidate, depth: int) -> None:
    from matplotlib.patches import Rectangle

    i, j = place_of(candidate)
    grown = 0.5 if depth <= MOST_TOLD else 1.0  # a cell of a deep model is too small to be found
    panel.add_patch(
        Rectangle(
            (j - grown, i - grown), 2 * grown, 2 * grown, fill=False, edgecolor=INK, linewidth=1.8, zorder=5
        )
    )


def _draw_scale(figure: "Figure", axes: "list[Axes]", findings: Findings, words: Wording, end: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    blocks = [entry for entry in findings.entries if entry.candidate.block is not None]
    gains = [c.gain for _, c in with_probe(blocks, words.facts.name) if c.is_significant]
    is_below, is_above = min(gains, default=0) < -end, max(gains, default=0) > end
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((is_below, is_above))
    bar = figure.colorbar(
        ScalarMappable(Normalize(-end, end), colour_map()),
        ax=axes, extend=extend or "neither", shrink=0.85, aspect=28, pad=0.02,
    )  # fmt: skip
    marks = [-end, -end / 2, 0.0, end / 2, end]
    base = findings.base.compared.get(words.facts.name)
    told = "base" if base is None else f"base {words.number(base.score.mean)}"
    bar.set_ticks(marks, labels=[told if mark == 0 else f"{mark:+.2g}" for mark in marks])
    bar.ax.axhline(0, color=INK, linewidth=1.4)
    bar.ax.tick_params(length=2, labelsize="small")
    what = "how far below the base" if words.facts.lower_is_better else "gain over the base"
    beyond = " (arrow: off the scale)" if extend else ""
    bar.set_label(f"{what}{beyond}", fontsize="small")
    bar.outline.set_visible(False)


def _draw_legend(figure: "Figure", findings: Findings, words: Wording, ncols: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=INK, marker="s", markersize=6, linestyle=(0, (1, 2)), lw=0.8, label="base"),
        Patch(color=BETTER[1], label="better"),
        Patch(color=WORSE[1], label="worse"),
        Patch(color="#d0d0d0", label="neither beyond chance (corrected p > 0.05)"),
    ]
    best = best_beyond_chance(findings, words.facts.name)
    if best is not None:
        gain = words.signed(best.compared[words.facts.name].gain)
        label = f"largest gain: {best.candidate.label}, {gain}"
        handles.append(Patch(fill=False, edgecolor=INK, linewidth=1.8, label=label))
    if any(entry.error is not None and entry.candidate.block is not None for entry in findings.entries):
        handles.append(Line2D([], [], color=FAINT, marker="x", linestyle="none", label="failed"))
    figure.legend(handles=handles, loc="outside lower left", ncols=ncols, frameon=False, fontsize="small")


def _points(depth: int) -> float:
    return max(9.0, min(60.0, 900 / depth))
