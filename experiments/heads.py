"""MHA to GQA and MQA: what the pooling of heads costs, and what training on gives back (GQA, 2305.13245).

Eight heads become four, two and one, by their mean, by the first of each group and by new random heads. The
loss is taken right after the conversion, and after 5% and 10% of the steps of the first training, as in the
paper's figures 4 and 5. The multi-head model that is trained on as long is the control.

"mean, norms restored" tests an explanation: the heads of a group point different ways, so that their mean is
shorter than they are; scaled to the mean length of theirs, does it lose less?

    python experiments/heads.py        under 20 minutes on two cores
"""

from pathlib import Path
from typing import Any

import common
import substrate
import torch
from common import Curve

KV_HEADS = (4, 2, 1)
POOLS = ("mean", "first", "random", "mean, norms restored")
CONTROL = "MHA (8)"
NAMES = {4: "GQA-4", 2: "GQA-2", 1: "MQA"}
COLOURS = {"mean": "#2a6f97", "first": "#e07a5f", "random": "#8d99ae", "mean, norms restored": "#81b29a"}
SHADES = {4: "#012a4a", 2: "#2a6f97", 1: "#89c2d9"}


def restored(fewer: Any, model: Any, kv_heads: int) -> Any:
    """Pooled heads scaled to the root mean square length that the heads of their group have."""
    size = fewer.config.head_dim
    for layer, before in zip(fewer.model.layers, model.model.layers, strict=True):
        for name in ("k_proj", "v_proj"):
            pooled = getattr(layer.self_attn, name).weight.data.view(kv_heads, size, -1)
            heads = getattr(before.self_attn, name).weight.data.view(kv_heads, -1, size, pooled.shape[-1])
            length = heads.pow(2).sum((2, 3)).mean(1).sqrt()  # (kv_heads,)
            pooled *= (length / pooled.pow(2).sum((1, 2)).sqrt())[:, None, None]
    return fewer


def part(seed: int, variant: str, folder: Path, steps: int, first: int) -> Curve:
    """One conversion, trained on: the loss before, halfway and at the end."""
    from restack.conversion import pooled

    model: Any = substrate.base(seed, first)
    if variant != CONTROL:
        name, _, pool = variant.partition(": ")
        kv_heads = next(count for count, called in NAMES.items() if called == name)
        fewer = pooled(model, kv_heads, pool=pool.split(",")[0], seed=seed)
        if "restored" in pool:  # this one is about the conversion alone
            return {0: substrate.loss(restored(fewer, model, kv_heads))}
        model = fewer
    return substrate.trained_on(model, seed, steps, folder, every=steps // 2)


def shrinkage(seed: int, first: int) -> dict[str, float]:
    """How long the mean of a group's heads is, beside theirs: 1 if all are equal, 1/sqrt(n) if unrelated."""
    model: Any = substrate.base(seed, first)
    found = {}
    for kv_heads in KV_HEADS:
        ratios = []
        for layer in model.model.layers:
            for name in ("k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight.data
                heads = weight.view(kv_heads, -1, model.config.head_dim, weight.shape[-1])
                length = heads.pow(2).sum((2, 3)).mean(1).sqrt()
                ratios.append(heads.mean(1).pow(2).sum((1, 2)).sqrt() / length)
        found[NAMES[kv_heads]] = torch.cat(ratios).mean().item()
    return found


def picture(found: dict[str, list[Curve]], half: int, out: Path) -> None:
    """Left: by pooling, right after and later. Right: by how long it was trained on."""
    figure, (left, right) = common.figure(9.5, 3.6, across=2)
    for place, pool in enumerate(POOLS):
        for group, kv_heads in enumerate(KV_HEADS):
            curves = found[f"{NAMES[kv_heads]}: {pool}"]
            at = group + (place - 1.5) * 0.2
            values = [curve[0] for curve in curves]
            left.bar(at, common.mean(curves, 0), 0.18, color=COLOURS[pool], label=pool if not group else None)
            left.plot([at] * len(values), values, ".", color="black", markersize=3)
            if half in curves[0]:
                left.plot([at - 0.09, at + 0.09], [common.mean(curves, half)] * 2, color="white", linewidth=2)
    left.axhline(common.mean(found[CONTROL], 0), color="black", linewidth=0.8, linestyle=":")
    left.text(2.42, common.mean(found[CONTROL], 0), "MHA", va="center", fontsize=8)
    left.set_xlim(-0.5, 2.4)
    left.set_ylim(1, 3.7)
    left.set_xticks(range(len(KV_HEADS)), [NAMES[count] for count in KV_HEADS])
    left.set_ylabel(common.LOSS)
    left.set_title("Right after conversion (white: after 5%)", fontsize=10)
    left.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    lines = [(f"{NAMES[count]}: mean", NAMES[count], "o-", shade) for count, shade in SHADES.items()]
    for variant, label, style, shade in [*lines, (CONTROL, "MHA, trained on too", "s:", "black")]:
        common.draw(right, found[variant], style, shade, label, 5 / half)
    right.set_xlabel("steps trained on, % of the first training")
    right.set_ylabel(common.LOSS)
    right.set_title("Mean pooling, trained on", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def main() -> None:
    chosen = common.options(__doc__)
    steps, first = (4, 8) if chosen.quick else (60, 600)
    variants = [CONTROL, *(f"{NAMES[count]}: {pool}" for count in KV_HEADS for pool in POOLS)]
    _, found = substrate.run_on_bases(part, chosen, variants, steps, first)
    half = steps // 2
    columns = {0: "right after", half: "after 5%", steps: "after 10%"}
    lengths = [shrinkage(seed, first) for seed in chosen.seeds]
    shorter = ", ".join(
        f"{name} {sum(length[name] for length in lengths) / len(lengths):.2f}" for name in lengths[0]
    )
    text = common.table(found, columns) + (
        f"\n\nLength of a group's mean head, of keys and values, beside its heads' (1: all equal): {shorter}."
    )
    picture(found, half, chosen.out / "heads.png")
    common.finish("heads", chosen, found, text)


if __name__ == "__main__":
    main()
