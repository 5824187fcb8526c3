"""What all experiments here stand on: a small multi-head Llama, trained anew from each of three seeds.

Eight layers of width 96 with eight heads, 1.0 million parameters, on the text that the demo model is trained
on: greetings, sums, stories, chains of variables; 600 steps of 2,048 tokens. It is kept in
`experiments/.cache`, so that the first experiment alone has to train it.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import Curve, Options, run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from restack import demo
from restack.demo import corpus
from restack.demo.curriculum import TYPICAL
from restack.training import Training, train

CACHE = Path(__file__).parent / ".cache"
LAYERS, HEADS, WIDTH = 8, 8, 96
LENGTH, BATCH = 128, 16  # tokens of a row, rows of a step
EVALUATION = 64  # rows, of which no other use is made
PEAK = 3e-3  # learning rate of the first training
LATER = 1e-3  # and of all that is trained on: a third, constant after a short rise

Row = list[int]


@cache
def tokenizer() -> Any:
    """That of the demo model."""
    return AutoTokenizer.from_pretrained(demo.FOLDER)


def rows(count: int, of: str) -> list[Row]:
    """So many rows of tokens; other names give other rows."""
    stage = replace(TYPICAL, length=LENGTH)
    return [corpus.row(tokenizer(), random.Random(f"{of}/{n}"), stage)[0][:LENGTH] for n in range(count)]


def training_rows(seed: int, steps: int, of: str) -> list[Row]:
    """What a run of so many steps reads, each row once."""
    return rows(steps * BATCH, f"{of}/{seed}")


@cache
def evaluation_rows() -> list[Row]:
    """The same for every run."""
    return rows(EVALUATION, "evaluation")


def config(**changes: Any) -> LlamaConfig:
    """Of the model."""
    sizes = {
        "vocab_size": len(tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": 11 * WIDTH // 4,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    return LlamaConfig(**sizes | changes)


@torch.no_grad()
def loss(model: Any) -> float:
    """Over the evaluation rows, in nats a token."""
    batch = torch.tensor(evaluation_rows())
    model.eval()
    parts = [model(part, labels=part, use_cache=False).loss.item() for part in batch.split(BATCH)]
    return sum(parts) / len(parts)


def prepare(seed: int, variant: str, folder: Path, first: int) -> Curve:
    """Train the model of a seed, as a part of an experiment."""
    return {first: loss(base(seed, first))}


def run_on_bases(
    part: Callable[..., Curve], chosen: Options, variants: Sequence[str], steps: int, first: int
) -> tuple[list[Curve], dict[str, list[Curve]]]:
    """The losses of the models of all seeds after `first` steps, and what `common.run` finds on them."""
    bases = run(prepare, chosen.seeds, ["the base"], first=first)["the base"]
    return bases, run(part, chosen.seeds, variants, steps=steps, first=first)


def base(seed: int, steps: int) -> LlamaForCausalLM:
    """The model of a seed, trained before or now."""
    folder = CACHE / f"base-{steps}-{seed}"
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config())
        settings = Training(
            steps=steps, batch=BATCH, lr=PEAK, weight_decay=0.1, seed=seed, save_every=steps, eval_every=steps
        )
        train(model, None, training_rows(seed, steps, "base"), folder, settings, evaluation=evaluation_rows())
    return AutoModelForCausalLM.from_pretrained(folder)


def trained_on(
    model: Any, seed: int, steps: int, out: Path, *, every: int, lr: float = LATER, **more: Any
) -> Curve:
    """Train a model further; the evaluation loss before the first step and after each `every` of them.

    Args:
        model: changed.
        seed: of the rows; none of them were in the first training.
        steps: of BATCH rows.
        out: a folder to work in.
        every: steps between evaluations.
        lr: learning rate; it rises for a tenth of the steps and stays.
        more: settings of the training.
    """
    before = loss(model)
    settings = Training(
        steps=steps, batch=BATCH, lr=lr, warmup=0.1, schedule="constant", seed=seed, eval_every=every,
        save_every=steps, **more,
    )  # fmt: skip
    found = train(
        model, None, training_rows(seed, steps, "more"), out, settings, evaluation=evaluation_rows()
    )
    shutil.rmtree(out)
    return {0: before} | found.evaluations
