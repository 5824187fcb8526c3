"""Lossless speculation on one set of weights: what a draft brings, beside what the cost model says.

Three drafts, each of a view of the model that checks it, greedy, one text at a time:

constructed   a random Llama of 303 M parameters whose layers 4 to 21 were made to contribute little, so that
              a view without them says nearly the same. No real model is like that: it shows what the loop
              does with a draft that is good.
demo          the demo model and the view that `restack draft demo` finds, on questions of its world.
useless       the first and the last layer of that random Llama, all layers at full strength: a draft that is
              nearly always wrong. The loop is to leave it off.

Tokens a second of decoding, with the draft and without, in turn; the median over runs. For rounds of a set
length g, the cost model: (1 - a^(g+1)) / ((1 - a) (g c + v)), a the acceptance that was met, c the time of a
draft's step and v that of checking g + 1 tokens, relative to a step of the model. What both views begin with
is in c alone, but for the last token drafted, where it is in v.

    python benchmarks/speculation.py --json speculation.json      some minutes, 3 GB of memory
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from decode import SHAPE
from report import Claim, TokenTimes, conditions, finish, options
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack import recipes
from restack.runtime.decoding import Drafter, decode, structure
from restack.runtime.decoding.pace import Pace
from restack.runtime.decoding.stepper import Stepper
from restack.runtime.native import quiet_kernel
from restack.views.leading import leading_visits

LITTLE = 0.004  # what those layers' contributions are multiplied by
QUESTIONS = ("What is 17 + 25?", "Tell me a story about Ben and a kite.", "What is the capital of France?")


class FixedPace(Pace):
    """Always drafts so many tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.rounds = length, 0

    knows_steps = True

    def pays_to_begin(self, reading: float, share: float, remaining: int) -> bool:
        return True

    def next_length(self) -> int:
        self.rounds += 1
        return self.length


def random_llama(little: range) -> Any:
    """The model, with what these layers contribute made small."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.05)).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with torch.no_grad():
        for number in little:
            layer = model.model.layers[number]
            layer.self_attn.o_proj.weight *= LITTLE
            layer.mlp.down_proj.weight *= LITTLE
    return model


def speed(model: Any, prompt: torch.Tensor, tokens: int, drafter: Drafter | None, **options: Any) -> float:
    """Tokens a second after the first."""
    watch = TokenTimes()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=tokens,
        streamer=watch,
        custom_generate=partial(decode, stream=watch, drafter=drafter),
        **options,
    )
    return (len(watch.seen) - 3) / (watch.seen[-2] - watch.seen[1])


def seconds(job: Callable[[], Any], runs: int) -> float:
    """The median of a job's time."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        job()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def costs(model: Any, draft: Any, place: int, length: int, runs: int) -> tuple[float, float]:
    """c and v of rounds of a length after so many tokens."""
    common, compiled = leading_visits(model, draft), quiet_kernel()
    assert compiled is not None
    steppers = []
    for each in (model, draft):
        found = structure(each)
        assert found is not None
        steppers.append(Stepper(compiled, found, [0], place + 16))
    target, drafting = steppers
    target.lengths, drafting.lengths = [place], [place]
    several = torch.randn(length + 1, target.structure.head.in_features)
    one = several[:1].clone()

    def run(stepper: Stepper, visits: range, hidden: torch.Tensor) -> None:
        stepper.run(visits, hidden.clone(), [len(hidden)], [0])

    def step() -> None:
        run(target, range(len(target.structure.visits)), one)
        target.logits(one)

    def draft_step() -> None:
        run(drafting, range(len(drafting.structure.visits)), one)
        drafting.logits(one)

    def check() -> None:
        run(target, range(common), one)
        run(target, range(common, len(target.structure.visits)), several)
        target.logits(several)

    whole = seconds(step, runs)
    return seconds(draft_step, runs) / whole, seconds(check, runs) / whole


def solved(tokens: float, length: int) -> float:
    """The acceptance with which rounds of this length give so many tokens each."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(length + 1)) < tokens else (low, middle)
    return middle


def main() -> None:
    asked = options(__doc__).parse_args()
    runs, tokens = (1, 48) if asked.quick else (3, 160)
    text = torch.randint(SHAPE["vocab_size"], (1, 32), generator=torch.Generator().manual_seed(1))
    demo, tokenizer = recipes.open("demo", dtype="float32"), recipes.open_tokenizer("demo")
    asked_of_demo = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        for question in QUESTIONS
    ]
    good, plain = random_llama(range(4, 22)), random_llama(range(0))
    cases = {
        "constructed": (good, restack.view(good, "0:4,22:"), [text], {}, 1.5),
        "demo": (demo, restack.view(demo, "0:2,3,5:7,9,11"), asked_of_demo, {}, 0.95),
        "useless": (plain, restack.view(plain, "0,23"), [text], {}, 0.95),
    }
    claims, told = [], {}
    for name, (model, draft, prompts, further, goal) in cases.items():
        paces: dict[str, Callable[[], Pace]] = {"adaptive": Pace}
        if name != "useless":
            paces |= {f"g = {length}": partial(FixedPace, length) for length in (2, 3)}
        drafters = {how: Drafter(draft) for how in paces}
        for how, drafter in drafters.items():
            drafter.pace = paces[how]()
        speeds: dict[str, list[float]] = {how: [] for how in (*paces, "alone")}
        for run in range(runs + 1):
            for how in speeds:
                found = [speed(model, each, tokens, drafters.get(how), **further) for each in prompts]
                if run or asked.quick:
                    speeds[how].append(statistics.harmonic_mean(found))
        alone = statistics.median(speeds["alone"])
        for how, drafter in drafters.items():
            reached = statistics.median(speeds[how])
            is_fixed = isinstance(drafter.pace, FixedPace)
            claims.append(
                Claim(
                    f"{name}, {how}", reached, alone, "token/s", None if is_fixed else goal * alone, more=True
                )
            )
            told[f"{name}, {how}"] = f"{drafter.pace.accepted} of {drafter.pace.drafted} drafted tokens kept"
            if is_fixed:
                length = drafter.pace.length
                rounds = drafter.pace.rounds
                a = solved(1 + drafter.pace.accepted / rounds, length)
                c, v = costs(model, draft, prompts[0].shape[1] + tokens // 2, length, 20)
                expected = (1 - a ** (length + 1)) / ((1 - a) * (length * c + v)) if a < 1 else 0.0
                told[f"{name}, {how}"] += (
                    f"; a {a:.3f}, c {c:.3f}, v {v:.3f}: expected {expected:.2f}x, met {reached / alone:.2f}x"
                )
    finish(asked.json, conditions(tokens=tokens, runs=runs, **told), claims, peer="without a draft")


if __name__ == "__main__":
    main()
