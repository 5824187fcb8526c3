"""The families: what the demo model is trained on and asked about.

`FAMILIES` are scored; `EXTRAS` are only trained on. Both were fixed before the shipped model was trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from restack.demo.families import arithmetic, depth, facts, greetings, lists, stories
from restack.demo.families.turns import Draw, Sample, Turn, draw, held_out

__all__ = [
    "CHANCE",
    "EXTRAS",
    "FAMILIES",
    "MIXES",
    "Sample",
    "Turn",
    "held_out",
    "probe_sample",
    "training_sample",
]

# Families whose content decides the split.
_BY_CONTENT: dict[str, Draw] = {
    "addition": arithmetic.addition,
    "subtraction": arithmetic.subtraction,
    "working": arithmetic.working,
    "multiplication": arithmetic.multiplication,
    "comparison": arithmetic.comparison,
    "word_problem": arithmetic.word_problem,
    "story": stories.story,
    "lookup": depth.lookup,
    "tracking": depth.tracking,
    "chain": depth.chain,
    "long_chain": depth.long_chain,
    "reversal": lists.reversal,
    "sorting": lists.sorting,
    "counting": lists.counting,
    "steps": arithmetic.steps,
    "large": arithmetic.large,
    "absent": depth.absent,
    "pairs": depth.pairs,
    "copying": lists.copying,
    "recall": depth.recall,
    "roll": depth.roll,
    "everyone": depth.everyone,
}
# Families of which a phrasing is held out.
_BY_PHRASING: dict[str, Callable[[random.Random, bool], Sample]] = {
    "greeting": greetings.greeting,
    "fact": facts.fact,
}
# Trained on only, with nothing to hold out.
_FREE: dict[str, Draw] = {
    "introduction": greetings.introduction,
    "unknown": greetings.unknown,
    "partner": greetings.partner,
}

FAMILIES: tuple[str, ...] = (
    "greeting", "fact", "addition", "subtraction", "working", "multiplication", "comparison", "word_problem",
    "story", "lookup", "tracking", "chain", "long_chain", "reversal", "sorting", "counting",
)  # fmt: skip
EXTRAS: tuple[str, ...] = (
    "steps",
    "large",
    "absent",
    "introduction",
    "unknown",
    "partner",
    "pairs",
    "copying",
    "recall",
    "roll",
    "everyone",
)

# What a guesser who knows the form of the answers, and reads the question, would score.
CHANCE: dict[str, float] = {
    "greeting": 0.12, "fact": 0.04, "addition": 0.01, "subtraction": 0.01, "working": 0.0,
    "multiplication": 0.0,
    "comparison": 0.5, "word_problem": 0.02, "story": 0.0, "lookup": 0.26, "tracking": 0.35, "chain": 0.47,
    "long_chain": 0.5, "reversal": 0.03, "sorting": 0.07, "counting": 0.0,
}  # fmt: skip

# How often a sample of each family is drawn, in parts: first the drills on which every look-up stands, then
# the look-ups with a little of the rest, then all together. `long_chain` is never trained on.
MIXES: tuple[dict[str, float], ...] = (
    {"pairs": 50, "recall": 25, "copying": 25},
    {
        "greeting": 4, "fact": 6, "addition": 4, "subtraction": 5, "working": 1.5, "multiplication": 2,
        "comparison": 5, "word_problem": 3, "story": 1, "lookup": 20, "tracking": 8, "chain": 20,
        "reversal": 4, "sorting": 5, "counting": 2, "steps": 1, "large": 0.5, "absent": 1, "introduction": 2,
        "unknown": 1, "partner": 0.5, "pairs": 6, "copying": 6, "recall": 8, "roll": 12, "everyone": 8,
    },
    {
        "greeting": 7, "fact": 10, "addition": 12, "subtraction": 14, "working": 3, "multiplication": 4,
        "comparison": 12, "word_problem": 5, "story": 2, "lookup": 9, "tracking": 14, "chain": 18,
        "reversal": 4, "sorting": 8, "counting": 2, "steps": 2, "large": 0.5, "absent": 1, "introduction": 2,
        "unknown": 1.5, "partner": 0.5, "pairs": 1, "copying": 3, "recall": 2, "roll": 12, "everyone": 3,
    },
)  # fmt: skip


def training_sample(family: str, rng: random.Random, stage: depth.Stage = depth.PROBED) -> Sample:
    """A sample that no probe will ask; `stage` is that of the chains' curriculum."""
    if family == "long_chain":
        raise ValueError("long_chain is for probes only")
    if family in ("chain", "roll"):
        make = depth.chain if family == "chain" else depth.roll
        return draw(lambda r: make(r, stage), rng, probe=False)
    if family in _BY_PHRASING:
        return _BY_PHRASING[family](rng, False)
    return _FREE[family](rng) if family in _FREE else draw(_BY_CONTENT[family], rng, probe=False)


def probe_sample(family: str, rng: random.Random) -> Sample:
    """A sample whose first question, asked alone, never occurs in training."""
    if family in _BY_PHRASING:
        return _BY_PHRASING[family](rng, True)
    return draw(_BY_CONTENT[family], rng, probe=True)
