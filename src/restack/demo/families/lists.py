"""Lists of words and numbers: reversal, sorting, counting. The question is its own key."""

from __future__ import annotations

import random

from restack.demo import world
from restack.demo.families.turns import Sample, Turn, one, operands


def reversal(rng: random.Random) -> Sample:
    """Three to six words, last first."""
    words = rng.sample(world.WORDS, rng.randint(3, 6))
    pattern = rng.choice(
        ("Reverse these words: {}", "Say these words in reverse: {}", "Reverse the list: {}")
    )
    return one(pattern.format(" ".join(words)), " ".join(reversed(words)), " ".join(words))


def sorting(rng: random.Random) -> Sample:
    """Three to five words in alphabetical order. The key is their set: no order of it is trained on."""
    words = rng.sample(world.WORDS, rng.randint(3, 5))
    pattern = rng.choice(("Sort these words: {}", "Put these words in order: {}", "Sort the list: {}"))
    ordered = " ".join(sorted(words))
    return Sample((Turn(pattern.format(" ".join(words)), ordered, weight=2.0),), ordered)


def counting(rng: random.Random) -> Sample:
    """From one number to another, up or down, three to nine numbers."""
    start = rng.randint(1, 90)
    end = start + rng.randint(2, 8)
    if rng.random() < 0.5:
        question, numbers = "Count from {} to {}.", range(start, end + 1)
    else:
        start, end = end, start
        question, numbers = "Count down from {} to {}.", range(start, end - 1, -1)
    return one(question.format(start, end), " ".join(map(str, numbers)) + ".", operands(start, end))


def copying(rng: random.Random) -> Sample:
    """A drill: words of the world, or a few that nobody has heard, said again as they are."""
    if rng.random() < 0.2:
        words = [world.invented(rng) for _ in range(rng.randint(1, 3))]
    else:
        words = rng.choices(world.WORDS, k=rng.randint(4, 16))
    return one(f"Say {' '.join(words)}.", f"{' '.join(words)}.")
