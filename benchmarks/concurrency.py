"""1 to 32 conversations at once over several plans of one model: restack beside transformers.

Three plans of a random Llama of 303 M parameters (the shape of decode.py) in float32. The conversations take
the plans in turn; those of one plan are a batch. restack has one set of weights, plain or packed with 4 bits,
and a view a plan; transformers has a materialised model a plan, in float32. Tokens a second over all
conversations, prompts of 32 tokens included, medians of runs that take turns; and the bytes of all weights.

    python benchmarks/concurrency.py --json concurrency.json      some minutes, 9 GB of memory
"""

import statistics
import time
from typing import Any

import torch
from decode import PLANS, SHAPE, made
from report import Claim, conditions, finish, options

import restack
from restack.runtime.decoding import decode

PROMPT = 32


def spoken(models: list[Any], conversations: int, tokens: int, **options: Any) -> float:
    """Tokens a second of so many conversations, each with the next of the models."""
    began = time.perf_counter()
    for number, model in enumerate(models):
        batch = len(range(number, conversations, len(models)))
        if batch:
            prompts = torch.randint(SHAPE["vocab_size"], (batch, PROMPT))
            mask = torch.ones_like(prompts)
            model.generate(prompts, attention_mask=mask, do_sample=False, max_new_tokens=tokens, **options)
    return conversations * tokens / (time.perf_counter() - began)


def size(models: list[Any]) -> int:
    """Bytes of all weights, each counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for m in models for tensor in m.parameters()}.values())


def main() -> None:
    asked = options(__doc__).parse_args()
    counts, tokens, runs = ([1, 8], 8, 1) if asked.quick else ([1, 2, 4, 8, 16, 32], 32, 3)
    plain, packed = made("float32"), made("int4")
    plans = list(PLANS.values())
    sides = {
        "float32": [restack.view(plain, plan) for plan in plans],
        "int4": [restack.view(packed, plan) for plan in plans],
        "transformers": [restack.materialise(plain, plan) for plan in plans],
    }
    further: dict[str, dict[str, Any]] = {name: {"custom_generate": decode} for name in ("float32", "int4")}
    claims = [
        Claim(f"weights of three plans, {name}", size(sides[name]), size(sides["transformers"]), "bytes")
        for name in further
    ]
    for count in counts:
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for run in range(runs + 1):
            for name, models in sides.items():
                speed = spoken(models, count, tokens, **further.get(name, {}))
                if run:
                    speeds[name].append(speed)
        medians = {name: statistics.median(each) for name, each in speeds.items()}
        claims += [
            Claim(f"{count} at once, {name}", medians[name], medians["transformers"], "token/s", more=True)
            for name in further
        ]
    finish(asked.json, conditions(tokens=tokens, prompt=PROMPT, runs=runs), claims, peer="transformers")


if __name__ == "__main__":
    main()
