"""LCKV from a trained model against from scratch, and where its warm-up layers stand (2405.10637).

Eight layers under maps with three owners, trained as the paper has it: seven passes without gradient and two
with (appendix C.1, table 7). From the trained model, each owner keeps its keys and values, or gets the mean
of its readers'. From scratch, the two layers that keep their own are half below and half above the rest
("sandwich", which is lckv-w2), all below or all above.

    python experiments/kv_sharing.py        under 20 minutes on two cores
"""

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
    figure, axes = common.figure(6.5, 3.8)
    looks = zip(found.items(), ("#012a4a", "#2a9d8f", "#e07a5f", "#f2a65a", "#8d99ae"), strict=True)
    for (variant, curves), colour in looks:
        common.draw(axes, curves, "o-" if variant in TRAINED else "s--", colour, variant)
    axes.set_xlabel("steps of 2,048 tokens under the KV map")
    axes.set_ylabel(common.LOSS)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def main() -> None:
    chosen = common.options(__doc__)
    steps, first = (4, 8) if chosen.quick else (60, 600)
    base, found = substrate.run_on_bases(part, chosen, [*TRAINED, *SCRATCH], steps, first)
    text = common.table(found, common.columns(steps, "right after"))
    text += f"\n\nThe multi-head model that they come from, after {first} steps: {common.told(base, first)}."
    picture(found, chosen.out / "kv_sharing.png")
    common.finish("kv_sharing", chosen, {"base": base} | found, text)


if __name__ == "__main__":
    main()
