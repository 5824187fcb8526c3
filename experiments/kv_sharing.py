"""LCKV from a trained model against from scratch, and where its warm-up layers stand (2405.10637).

Eight layers under maps with three owners, trained as the paper has it: seven passes without gradient and two
with (appendix C.1, table 7). From the trained model, each owner keeps its keys and values, or gets the mean
of its readers'. From scratch, the two layers that keep their own are half below and half above the rest
("sandwich", which is lckv-w2), all below or all above.

    python experiments/kv_sharing.py        under 20 minutes on two cores
"""

import time
from pathlib import Path

import common
import substrate
from common import Curve

MAPS = {
    "sandwich": "lckv-w2",
    "all below": "0_1_7x6",
    "all above": "5x6_6_7",
}
TRAINED = {"from the trained model, own": "own", "from the trained model, mean": "mean"}
SCRATCH = {f"from scratch, {name}": name for name in MAPS}
TITLE = "loss, nats a token"


def part(seed: int, variant: str, folder: Path, steps: int, first: int) -> Curve:
    """One run: the loss before it, halfway and at its end."""
    import torch
    from transformers import AutoModelForCausalLM

    from restack.conversion import convert_kv
    from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM
    from restack.llama.families import settings

    substrate.base(seed, first)
    start = substrate.CACHE / f"base-{first}-{seed}"
    if variant in TRAINED:
        shared = folder.with_name(f"{folder.name}-shared")
        convert_kv(str(start), MAPS["sandwich"], shared, init=TRAINED[variant])
        model = AutoModelForCausalLM.from_pretrained(shared)
        rate = substrate.LATER
    else:
        torch.manual_seed(1000 + seed)
        same = settings(substrate.config().to_dict())
        model = RestackLlamaForCausalLM(RestackLlamaConfig(**same, kv_map=MAPS[SCRATCH[variant]]))
        rate = substrate.PEAK
    return substrate.trained_on(model, seed, steps, folder, every=steps // 2, lr=rate)


def picture(found: dict[str, list[Curve]], out: Path) -> None:
    """The loss over the steps of every variant."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    looks = zip(found.items(), ("#012a4a", "#2a9d8f", "#e07a5f", "#f2a65a", "#8d99ae"), strict=True)
    for (variant, curves), colour in looks:
        steps = sorted(curves[0])
        style = "o-" if variant in TRAINED else "s--"
        axes.plot(steps, [common.mean(curves, step) for step in steps], style, color=colour, label=variant)
        for curve in curves:
            axes.plot(steps, [curve[step] for step in steps], ".", color=colour, alpha=0.4)
    axes.set_xlabel("steps of 2,048 tokens under the KV map")
    axes.set_ylabel(TITLE)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def main() -> None:
    chosen, began = common.options(__doc__), time.perf_counter()
    steps, first = (4, 8) if chosen.quick else (60, 600)
    base = common.run(substrate.prepare, chosen.seeds, ["the base"], first=first)["the base"]
    found = common.run(part, chosen.seeds, [*TRAINED, *SCRATCH], steps=steps, first=first)
    columns = {0: "right after", steps // 2: f"after {steps // 2} steps", steps: f"after {steps} steps"}
    text = common.table(found, columns, TITLE)
    text += f"\n\nThe multi-head model that they come from, after {first} steps: {common.told(base, first)}."
    picture(found, chosen.out / "kv_sharing.png")
    common.finish("kv_sharing", chosen, began, {"base": base} | found, text)


if __name__ == "__main__":
    main()
