"""Pictures of plans."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from restack.errors import PlanError
from restack.plans.value import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST_RUN, LATER_RUNS, SKIPPED = "#3b6ea8", ("#e08a2c", "#c0453a", "#7d3c98"), "#d9d9d9"


def draw(plans: Mapping[str, Plan], path: str | Path, title: str = "") -> None:
    """Draw plans one above the other: which layer (upwards) each visit (rightwards) runs.

    The first run of a layer, later runs, and layers that are never run are told apart by colour.

    Args:
        plans: by the name that is written over each.
        path: of the picture; its ending says the format (.png, .svg, .pdf).
        title: over all of them.

    Raises:
        PlanError: a plan has several donors.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if any(len(plan.depths) > 1 for plan in plans.values()):
        raise PlanError("only plans of one model can be drawn")
    longest = max(len(plan) for plan in plans.values())
    heights = [0.7 + 0.13 * max(plan.depths) for plan in plans.values()]
    figure = Figure(figsize=(max(6.0, 0.32 * longest + 2.5), sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(plans), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, plan) in zip(axes, plans.items(), strict=True):
        _draw_one(panel, name, plan)
        panel.set_xlim(-1.6, longest - 0.4)
    axes[-1].set_xlabel("visit")
    legend = {
        "first run": FIRST_RUN,
        "second run": LATER_RUNS[0],
        "third run": LATER_RUNS[1],
        "never run": SKIPPED,
    }
    most = max(max(Counter(plan.order).values()) for plan in plans.values())
    shown = [name for number, name in enumerate(legend) if number < most or name == "never run"]
    handles = [Patch(color=legend[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_one(panel: "Axes", name: str, plan: Plan) -> None:
    depth = max(plan.depths)
    runs: Counter[int] = Counter()
    for number, layer in enumerate(plan.order):
        colour = LATER_RUNS[min(runs[layer], len(LATER_RUNS)) - 1] if runs[layer] else FIRST_RUN
        panel.bar(number, 0.86, bottom=layer - 0.43, width=0.86, color=colour)
        runs[layer] += 1
    for layer in set(range(depth)) - set(plan.order):
        panel.barh(layer, len(plan), left=-0.5, height=0.12, color=SKIPPED, zorder=0)
    step = max(1, depth // 12)
    panel.set_yticks(range(0, depth, step))
    panel.set_ylim(-0.7, depth - 0.3)
    panel.set_ylabel("layer")
    panel.set_title(f"{name}: {plan}, {len(plan)} visits", loc="left", fontsize="medium")
    panel.spines[["top", "right"]].set_visible(False)
