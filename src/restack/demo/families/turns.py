"""What a family makes, and the rule that keeps probe questions out of training."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HOLD_OUT = 17  # one content in 17 belongs to the probes


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer.

    `given` is a prefix of the answer that the model continues but never learns to say by itself.
    `weight` is what a token of the answer weighs in the loss of training: more where one word, hard to
    come by, is the whole answer. `question_weight` is what a token of the question weighs; None: as little
    as most of what users say.
    """

    question: str
    answer: str
    given: str = ""
    weight: float = 1.0
    question_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A short exchange: one or more turns that belong together.

    `key` is the content that decides the split: the operands, the pair, the text of the question.
    `system` is a system prompt that the turns need; None: any will do.
    """

    turns: tuple[Turn, ...]
    key: str
    system: str | None = None


Draw = Callable[[random.Random], Sample]


def held_out(key: str) -> bool:
    """Whether this content belongs to the probes: decided by its text alone, whoever asks."""
    return zlib.crc32(key.encode()) % HOLD_OUT == 0


def operands(*numbers: int) -> str:
    """The key of an arithmetic question: its operands sorted, so that 3 + 4 and 4 + 3 are one."""
    return " ".join(str(number) for number in sorted(numbers))


def draw(make: Draw, rng: random.Random, probe: bool) -> Sample:
    """Draws until the content lies on the wanted side of the split."""
    while True:
        sample = make(rng)
        if held_out(sample.key) is probe:
            return sample


def one(question: str, answer: str, key: str | None = None, system: str | None = None) -> Sample:
    """A sample of a single turn; without a key, the question is its own."""
    return Sample((Turn(question, answer),), question if key is None else key, system)
