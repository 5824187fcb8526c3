"""Charts as inline SVG: what a gain costs, the layers of the base, a difference and its interval."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np

from restack.scanning.findings import Findings, LayerFacts
from restack.scanning.reporting.heat_chart import base_tip, tip
from restack.scanning.reporting.heat_map import ticks
from restack.scanning.reporting.order import FEW, front, front_line, lowest, with_probe
from restack.scanning.reporting.svg import BASE, Scale, box, chart, key, label, mark, path, swatch, upright
from restack.scanning.reporting.wording import Wording, verdict_word
from restack.scanning.statistics import Interval

MOST_NAMES = 8  # of points on a front
MANY = 300  # points that are drawn smaller
DOTS = {"better": "b5", "worse": "w5", "": "g5"}


def pareto_chart(findings: Findings, words: Wording) -> str:
    """Each stack's gain against its cost, and the front; names and intervals, where there are few stacks."""
    pairs = with_probe(findings.entries, words.facts.name)
    bottom = lowest(findings, words.facts.name)
    shown = [(entry, compared) for entry, compared in pairs if compared.gain >= bottom]
    reaches = {n: words.gain_reach(c) for n, (_, c) in enumerate(shown)} if len(pairs) <= FEW else {}
    ends = [end for reach in reaches.values() for end in reach]
    bottom, top = min([bottom, *ends]), max([0.0, *ends, *(compared.gain for _, compared in shown)])
    costs = [*(entry.cost for entry, _ in shown), 1.0]
    x = Scale(min(costs), max(costs), 0, 700, 14)
    y = Scale(bottom - 0.02 * (top - bottom), top + 0.08 * (top - bottom), 340, 0)
    points = [(entry.cost, compared.gain, compared.is_significant) for entry, compared in shown]
    on_front = front(points)
    parts = [path("grid", f"M0 {y(tick):.1f}H700") for tick in y.ticks]
    for n, (low, high) in reaches.items():
        style = f"known {DOTS[verdict_word(shown[n][1])]}"
        parts.append(path(style, f"M{x(points[n][0]):.1f} {y(low):.1f}V{y(high):.1f}"))
    radius = 4 if len(shown) < MANY else 2.5
    for entry, compared in sorted(shown, key=lambda pair: pair[1].is_significant):
        place = f'cx="{x(entry.cost):.1f}" cy="{y(compared.gain):.1f}" r="{radius}"'
        style = f"dot {DOTS[verdict_word(compared)]}"
        parts.append(mark("circle", tip(entry, compared, words), style, place))
    line = [(x(cost), y(gain)) for cost, gain in front_line([points[n] for n in on_front])]
    steps = "".join(f"H{right:.1f}V{height:.1f}" for right, height in line[1:])
    parts.append(path("front", f"M{line[0][0]:.1f} {line[0][1]:.1f}{steps}"))
    parts.append(mark("rect", base_tip(findings, words), "base", box(x(1.0) - 5, y(0.0) - 5, 10, 10)))
    named = reaches or on_front
    parts += _names([(x(points[n][0]), y(points[n][1]), shown[n][0].candidate.label) for n in named])
    below = len(pairs) - len(shown)
    if below:
        parts.append(label(696, 333, f"{below} {'stack' if below == 1 else 'stacks'} further below", "end"))
    parts += [path("zero", f"M0 {y(0.0):.1f}H700"), path("axis", "M0 0V340H700")]
    parts += [label(x(tick), 356, f"{tick:g}") for tick in x.ticks]
    parts += [label(-6, y(tick) + 4, f"{tick:+.3g}" if tick else "0", "end") for tick in y.ticks]
    parts.append(label(350, 376, "cost: layer visits, relative to the base's"))
    lower = words.facts.lower_is_better
    parts.append(upright(-46, 170, "how far below the base" if lower else "gain over the base"))
    return chart(-60, -6, 768, 390, parts, f"{words.facts.name}: gain against cost")


def pareto_key() -> str:
    """What the colours of `pareto_chart` mean."""
    dots = [
        swatch(12, [f'<circle class="{DOTS[word]}" cx="6" cy="6" r="5"/>']) + f"{word or 'not'} beyond chance"
        for word in DOTS
    ]
    line = swatch(24, [path("front", "M0 10H12V2H24")])
    told = "front: no cheaper stack is better; above the base's cost, only what is better beyond chance"
    return key([*dots, BASE, line + told])


def influence_chart(layers: LayerFacts) -> str:
    """A bar for each layer."""
    depth = len(layers.influence)
    width = 400 / depth
    y = Scale(0.0, float(np.nanmax(layers.influence, initial=1e-9)), 300, 0)
    parts = [path("grid", f"M0 {y(tick):.1f}H400") for tick in y.ticks]
    for layer, value in enumerate(layers.influence):
        height = max(0.0, 300 - y(float(value)))
        place = box((layer + 0.1) * width, 300 - height, 0.8 * width, height)
        parts.append(mark("rect", f"layer {layer}: {value:.4f}", "bar", place))
    parts.append(path("axis", "M0 300H400"))
    parts += [label((tick + 0.5) * width, 316, str(tick)) for tick in ticks(depth) if tick < depth]
    parts += [label(-6, y(tick) + 4, f"{tick:.3g}", "end") for tick in y.ticks]
    parts.append(label(200, 336, "layer"))
    return chart(-36, -6, 442, 350, parts, "block influence of each layer")


def similarity_chart(layers: LayerFacts) -> str:
    """The matrix of cosines, a pixel a pair."""
    from matplotlib.image import imsave

    count = len(layers.similarity)
    low = float(np.nanmin(layers.similarity, initial=1.0))

    def picture(values: np.ndarray, place: str) -> str:
        target = BytesIO()
        imsave(target, values, cmap="viridis", vmin=low, vmax=1.0, format="png")
        data = base64.b64encode(target.getvalue()).decode()
        return (
            f'<image class="pixels" preserveAspectRatio="none" {place} href="data:image/png;base64,{data}"/>'
        )

    parts = [picture(layers.similarity, box(0, 0, 400, 400))]
    for tick in ticks(count - 1):
        at = (tick + 0.5) * 400 / count
        parts += [label(at, 415, str(tick)), label(-6, at + 4, str(tick), "end")]
    parts.append(label(0, 437, "hidden states that enter layer", "start"))
    parts.append(label(296, 437, f"cosine {low:.2f}", "end"))
    parts.append(picture(np.linspace(low, 1.0, 64)[None], box(302, 428, 80, 10)))
    parts.append(label(386, 437, "1", "start"))
    return chart(-28, -6, 434, 450, parts, "similarity of hidden states")


def whisker(difference: Interval, words: Wording) -> str:
    """A difference and its interval on a line that shows 0."""
    x = Scale(min(difference.low, 0.0), max(difference.high, 0.0), 8, 292, 20)
    parts = [
        path("faint axis", "M0 14H300"),
        path("zero", f"M{x(0.0):.1f} 2V26"),
        path("reach", f"M{x(difference.low):.1f} 14H{x(difference.high):.1f}"),
        f'<circle class="mean" cx="{x(difference.mean):.1f}" cy="14" r="6"/>',
        label(x(0.0), 38, "base"),
    ]
    return chart(0, 0, 300, 42, parts, words.moved(difference))


def _names(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names above points, the highest first, those left out that would cover another."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    for x, y, name in sorted(points, key=lambda point: point[1])[:MOST_NAMES]:
        half = 3.4 * len(name)
        if all(abs(x - other) > half + width or abs(y - height) > 13 for other, height, width in taken):
            taken.append((x, y, half))
            parts.append(label(max(x, half), y - 9, name, style="name"))
    return parts
