"""Prune a block of layers, then heal what is left (Gromov et al., 2403.17887).

Of eight layers, two neighbours are left out: those without which the loss is least, on rows that nothing else
reads. What is left is trained on, all of it or adapters alone, as the paper does. Controls: the whole model
trained on as long, and a model of six layers that is trained from scratch as long as it was healed.

    python experiments/prune_and_heal.py        under 20 minutes on two cores
"""

from pathlib import Path
from typing import Any

import common
import substrate
from common import Curve

DROPPED = 2
RANK = 8
WHOLE, SCRATCH = "not pruned, all weights", "six layers from scratch"
VARIANTS = ("pruned, all weights", "pruned, LoRA", WHOLE, SCRATCH)


def least_missed(model: Any) -> list[int]:
    """The layers without the neighbours that are missed least, by the loss on 64 rows of their own."""
    import torch

    import restack

    rows = torch.tensor(substrate.rows(64, "choice"))
    plans = []
    for start in range(substrate.LAYERS - DROPPED + 1):
        kept = [layer for layer in range(substrate.LAYERS) if not start <= layer < start + DROPPED]
        with torch.no_grad():
            loss = restack.view(model, kept).eval()(rows, labels=rows).loss.item()
        plans.append((loss, kept))
    return min(plans)[1]


def part(seed: int, variant: str, folder: Path, steps: int, first: int) -> Curve:
    """One run: the loss before it, halfway and at its end."""
    import torch
    from transformers import LlamaForCausalLM

    import restack

    more: dict[str, Any] = {}
    if variant == SCRATCH:
        torch.manual_seed(1000 + seed)
        model: Any = LlamaForCausalLM(substrate.config(num_hidden_layers=substrate.LAYERS - DROPPED))
        more = {"lr": substrate.PEAK}
    else:
        model = substrate.base(seed, first)
        if variant != WHOLE:
            kept = least_missed(model)
            print(f"seed {seed} keeps layers {kept}", flush=True)
            model = restack.materialise(model, kept)
        if variant == "pruned, LoRA":
            more = {"lr": 3 * substrate.LATER, "lora": RANK, "lora_visits": "all"}
    return substrate.trained_on(model, seed, steps, folder, every=steps // 2, **more)


def picture(found: dict[str, list[Curve]], base: list[Curve], first: int, out: Path) -> None:
    """The loss over the steps of every variant."""
    figure, axes = common.figure(6, 3.6)
    last = max(found[SCRATCH][0])
    for variant, colour in zip(VARIANTS[:-1], ("#2a6f97", "#e07a5f", "black"), strict=True):
        common.draw(axes, found[variant], "o-", colour, variant)
    axes.axhline(common.mean(base, first), color="black", linewidth=0.8, linestyle=":")
    axes.text(last, common.mean(base, first), "base", va="bottom", ha="right", fontsize=8)
    above = f"{SCRATCH}: {common.mean(found[SCRATCH], last):.2f} after {last} steps, above the picture"
    axes.set_title(above, fontsize=8, loc="right", color="#555555")
    axes.set_xlabel("steps of 2,048 tokens after pruning")
    axes.set_ylabel(common.LOSS)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def main() -> None:
    chosen = common.options(__doc__)
    steps, first = (4, 8) if chosen.quick else (60, 600)
    base, found = substrate.run_on_bases(part, chosen, VARIANTS, steps, first)
    text = f"{common.table(found, common.columns(steps, 'before'))}\n\nThe base: {common.told(base, first)}."
    picture(found, base, first, chosen.out / "prune_and_heal.png")
    common.finish("prune_and_heal", chosen, {"base": base} | found, text)


if __name__ == "__main__":
    main()
