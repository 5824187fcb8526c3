"""A repeated block with a LoRA for each visit, against the frozen repeat and against no repeat.

Layers 3, 4 and 5 of eight run twice, on one set of weights that stays frozen; low-rank adapters alone are
trained (Relaxed Recursive Transformers, 2410.20672). Controls: adapters of as many parameters on the model
without the repeat, and all weights trained, with the repeat and without.

    python experiments/lora_per_visit.py        under 20 minutes on two cores
"""

from pathlib import Path
from typing import Any

import common
import substrate
from common import Curve

PLAN, BLOCK = "0:6,3:8", "3:6"
RANK = 8  # of the six visits of the block; the control has twice that on its three
FROZEN = "block twice, nothing trained"
VARIANTS = {
    "no repeat, LoRA of twice the rank": ("all", {"lora": 2 * RANK, "lora_visits": BLOCK}),
    "block twice, a LoRA for each visit": (PLAN, {"lora": RANK, "lora_visits": "repeated"}),
    "block twice, a LoRA for the second visits": (PLAN, {"lora": 2 * RANK, "lora_visits": "6:9"}),
    "block twice, all weights": (PLAN, {}),
    "no repeat, all weights": ("all", {}),
}


def part(seed: int, variant: str, folder: Path, steps: int, first: int) -> Curve:
    """One run: the loss before it, halfway and at its end."""
    import restack

    plan, settings = VARIANTS[variant]
    model: Any = substrate.base(seed, first)
    if plan != "all":
        model = restack.view(model, plan)
    rate = {"lr": 3 * substrate.LATER} if settings else {}
    return substrate.trained_on(model, seed, steps, folder, every=steps // 2, **settings, **rate)


def picture(found: dict[str, list[Curve]], base: list[Curve], first: int, steps: int, out: Path) -> None:
    """The loss of every variant before and after."""
    figure, axes = common.figure(7.5, 3)
    for place, (variant, curves) in enumerate(found.items()):
        colour = "#2a6f97" if "twice" in variant.split(",")[0] else "#8d99ae"
        axes.plot(common.mean(curves, steps), -place, "|", color=colour, markersize=22, markeredgewidth=3)
        axes.plot(
            [curve[steps] for curve in curves], [-place] * len(curves), ".", color="black", markersize=4
        )
    repeat = common.mean(found["block twice, all weights"], 0)
    for value, label in ((common.mean(base, first), "base"), (repeat, "frozen repeat")):
        axes.axvline(value, color="black", linewidth=0.8, linestyle=":")
        axes.text(value, 0.55, label, fontsize=8, ha="center", va="bottom")
    axes.set_ylim(-len(found) + 0.4, 0.5)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_yticks([-place for place in range(len(found))], list(found))
    axes.set_xlabel(f"{common.LOSS}, after {steps} steps")
    figure.savefig(out, dpi=150)


def main() -> None:
    chosen = common.options(__doc__)
    steps, first = (4, 8) if chosen.quick else (90, 600)
    base, found = substrate.run_on_bases(part, chosen, list(VARIANTS), steps, first)
    text = common.table(found, common.columns(steps, "before"))
    frozen = common.told(found["block twice, all weights"], 0)
    text += f"\n\nThe base: {common.told(base, first)}. {FROZEN.capitalize()}: {frozen}."
    picture(found, base, first, steps, chosen.out / "lora_per_visit.png")
    common.finish("lora_per_visit", chosen, {"base": base} | found, text)


if __name__ == "__main__":
    main()
