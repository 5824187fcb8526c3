"""The tables of the model card: `python -m restack.demo.measure`, every family under several plans.

The same probes go to every plan, so the differences from the base are paired.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from restack.demo import FOLDER
from restack.demo.families import CHANCE, FAMILIES
from restack.demo.probes import answers, is_right, probes
from restack.errors import RestackError
from restack.views import view

BASE = ":"
PLANS = {
    "base": BASE,
    "block twice": "0:8,4:12",
    "three times": "0:8,4:8,4:12",
    "four times": "0:8,4:8,4:8,4:12",
    "pruned": "0:5,7:",
}


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson, 1927)."""
    z = 1.96
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / n / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(base: list[bool], other: list[bool]) -> tuple[float, float, float]:
    """How much better `other` is on the same probes, and half of the 95% interval; McNemar's exact p."""
    n = len(base)
    gained = sum(b and not a for a, b in zip(base, other, strict=True))
    lost = sum(a and not b for a, b in zip(base, other, strict=True))
    half = 1.96 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return (gained - lost) / n, half, min(1.0, 2 * tail)


def measure(
    model: Any, tokenizer: Any, plans: dict[str, str], families: tuple[str, ...], n: int, seed: int
) -> Any:
    """Which probes each plan answers right: `{plan: {family: [bool] * n}}`."""
    right: dict[str, dict[str, list[bool]]] = {}
    for name, spec in plans.items():
        stacked = model if spec == BASE else view(model, spec)
        right[name] = {}
        for family in families:
            items = probes(family, n, seed)
            given = answers(stacked, tokenizer, items)
            right[name][family] = [is_right(item, answer) for item, answer in zip(items, given, strict=True)]
            print(f"{name}: {family} {sum(right[name][family]) / n:.3f}", file=sys.stderr)
    return right


def table(right: dict[str, dict[str, list[bool]]]) -> str:
    """Accuracy of each family under each plan, in Markdown; 95% intervals in brackets."""
    names = list(right)
    lines = ["| family | chance | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for family in right[names[0]]:
        cells = []
        for name in names:
            values = right[name][family]
            low, high = wilson(sum(values), len(values))
            cells.append(f"{sum(values) / len(values):.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {family} | {CHANCE[family]:.2f} | " + " | ".join(cells) + " |")
    means = [sum(sum(v) / len(v) for v in right[name].values()) / len(right[name]) for name in names]
    return "\n".join([*lines, "| mean | | " + " | ".join(f"{mean:.3f}" for mean in means) + " |"])


def differences(right: dict[str, dict[str, list[bool]]]) -> str:
    """Each plan against the base on the same probes, where 95% of the interval lies on one side of zero."""
    names = list(right)
    lines = ["| family | plan | better by | p |", "|---|---|---|---|"]
    for family, base in right[names[0]].items():
        for name in names[1:]:
            gain, half, p = paired(base, right[name][family])
            if abs(gain) > half:
                lines.append(f"| {family} | {name} | {gain:+.3f} ± {half:.3f} | {p:.2g} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m restack.demo.measure", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the model (the shipped one)")
    parser.add_argument("--n", type=int, default=200, help="probes of each family")
    parser.add_argument("--seed", type=int, default=0, help="which probes")
    parser.add_argument("--families", nargs="+", default=FAMILIES, help="which families")
    parser.add_argument(
        "--plans", nargs="+", choices=PLANS, default=list(PLANS), help="which plans, the base first"
    )
    parser.add_argument("--json", type=Path, help="write which probes were right to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        plans = {name: PLANS[name] for name in options.plans}
        right = measure(model, tokenizer, plans, tuple(options.families), options.n, options.seed)
    except (RestackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.n} probes a family, seed {options.seed}, float32, greedy\n\n{table(right)}\n")
    print(differences(right))
    print(f"{time.process_time() - started:.0f} processor seconds", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(right), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
