"""The pictures of a scan: heat maps, the layers of the base, and what a gain costs."""

from io import BytesIO
from typing import TYPE_CHECKING

from restack.scanning.findings import Findings, LayerFacts
from restack.scanning.reporting.heat_map import FAINT, INK, draw_heat_map, plain, ticks, tidy
from restack.scanning.reporting.order import file_names, with_probe
from restack.scanning.reporting.pareto import draw_pareto
from restack.scanning.reporting.wording import wordings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE = "#3b6ea8"


def draw_all(findings: Findings) -> dict[str, "Figure"]:
    """Every picture that the findings have matter for, by the name of its file."""
    words, names = wordings(findings), file_names(facts.name for facts in findings.probes)
    found: dict[str, Figure] = {}
    for name, wording in words.items():
        figure = draw_heat_map(findings, wording)
        if figure is not None:
            found[f"heat-{names[name]}.png"] = figure
    if findings.layers is not None:
        found["similarity.png"] = draw_similarity(findings.layers, findings.model)
        found["influence.png"] = draw_influence(findings.layers, findings.model)
    objective = findings.verdict.objective
    if objective and with_probe(findings.entries, objective[0]):
        found["pareto.png"] = draw_pareto(findings, words[objective[0]])
    return found


def as_png(figure: "Figure") -> bytes:
    """A figure as a file."""
    target = BytesIO()
    figure.savefig(target, dpi=150, format="png")
    return target.getvalue()


def draw_similarity(layers: LayerFacts, model: str) -> "Figure":
    """Draw the mean cosine of the hidden states at each pair of places between layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(layers.similarity, cmap="viridis", interpolation="nearest", vmax=1.0)
    depth = len(layers.influence)
    axes.set_xticks(ticks(depth))
    axes.set_yticks(ticks(depth))
    axes.set_xlabel(f"hidden states that enter layer ({depth}: that leave the last)")
    axes.set_ylabel("hidden states that enter layer")
    title = f"{plain(model)}\nsimilarity of hidden states, {plain(layers.text)}"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.tick_params(length=2, color=FAINT, labelsize="small")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=26)
    bar.set_label("mean cosine", fontsize="small")
    bar.outline.set_visible(False)
    return figure


def draw_influence(layers: LayerFacts, model: str) -> "Figure":
    """Draw how much each layer changes the hidden states: ShortGPT's block influence."""
    from matplotlib.figure import Figure

    depth = len(layers.influence)
    figure = Figure(figsize=(min(12.0, max(6.0, 0.14 * depth + 3)), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(depth), layers.influence, width=0.8, color=BLUE)
    if depth <= 16:
        axes.bar_label(bars, fmt="%.2f", fontsize="small", color=INK, padding=1)
    axes.set_xticks([tick for tick in ticks(depth) if tick < depth])
    axes.set_xlim(-0.7, depth - 0.3)
    axes.set_xlabel("layer")
    axes.set_ylabel("1 - cosine(input, output)")
    title = f"{plain(model)}\nblock influence of each layer, {plain(layers.text)}"
    axes.set_title(title, loc="left", fontsize="medium")
    tidy(axes)
    return figure
