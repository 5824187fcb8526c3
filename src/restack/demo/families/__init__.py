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
    "swapped": depth.swapped,
    "copying": lists.copying,
    "restated": depth.restated,
    "recall": depth.recall,
    "roll": depth.roll,
    "resolved": depth.resolved,
    "everyone": depth.everyone,
}
# Of those, the ones made of chains.
_OF_CHAINS: dict[str, Callable[[random.Random, depth.Hops], Sample]] = {
    "chain": depth.chain,
    "roll": depth.roll,
    "resolved": depth.resolved,
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
    "swapped",
    "copying",
    "restated",
    "recall",
    "roll",
    "resolved",
    "everyone",
)

# What a guesser who knows the form of the answers, and reads the question, would score.
CHANCE: dict[str, float] = {
    "greeting": 0.12, "fact": 0.04, "addition": 0.01, "subtraction": 0.01, "working": 0.0,
    "multiplication": 0.0,
    "comparison": 0.5, "word_problem": 0.02, "story": 0.0, "lookup": 0.26, "tracking": 0.35, "chain": 0.47,
    "long_chain": 0.5, "reversal": 0.03, "sorting": 0.07, "counting": 0.0,
}  # fmt: skip


def training_sample(family: str, rng: random.Random, hops: depth.Hops = depth.PROBED) -> Sample:
    """A sample that no probe will ask; `hops` are those of its chains, if it has any."""
    if family == "long_chain":
        raise ValueError("long_chain is for probes only")
    if family in _OF_CHAINS:
        return draw(lambda r: _OF_CHAINS[family](r, hops), rng, probe=False)
    if family in _BY_PHRASING:
        return _BY_PHRASING[family](rng, False)
    return _FREE[family](rng) if family in _FREE else draw(_BY_CONTENT[family], rng, probe=False)


def probe_sample(family: str, rng: random.Random) -> Sample:
    """A sample whose first question, asked alone, never occurs in training."""
    if family in _BY_PHRASING:
        return _BY_PHRASING[family](rng, True)
    return draw(_BY_CONTENT[family], rng, probe=True)
