"""Hard arithmetic, answered at once, with credit for what is nearly right.

RYS's idea: the answer alone is asked for, without working, of problems too large to be known by heart; a
wrong digit costs less than a wrong number, so that few questions tell stacks apart. The questions are ours.
"""

import random
import re
from collections.abc import Sequence
from math import isqrt
from typing import Any

from restack.scanning.probe import FreeProbe
from restack.scanning.probes.digest import digest
from restack.scanning.probes.questions import prompt_of
from restack.scanning.probes.writing import answers

LONGEST = 64  # tokens of an answer
SYSTEM = "You are a calculator. Answer with the number alone."
NUMBER = re.compile(r"-?(?:\d{1,3}(?:[,_ ]\d{3})+(?!\d)|\d+)(?:\.\d+)?")


class Arithmetic(FreeProbe):
    """Products, sums, differences, squares, quotients and roots of large whole numbers.

    The score of an answer is `credit`, from 0 to 1.
    """

    measure = "credit"
    chance = 0.0

    def __init__(self, name: str, tokenizer: Any, count: int, seed: int = 0) -> None:
        """Make questions.

        Args:
            name: of the probe.
            tokenizer: of the model.
            count: how many.
            seed: which.
        """
        self.name, self.tokenizer = name, tokenizer
        self._questions = problems(count, seed)

    def __len__(self) -> int:
        return len(self._questions)

    def fingerprint(self) -> str:
        return digest([SYSTEM, self._questions])

    def scores(self, model: Any, questions: Sequence[int]) -> list[float]:
        asked = [self._questions[question] for question in questions]
        prompts = [prompt_of(self.tokenizer, self._said(text), text) for text, _ in asked]
        written = answers(model, self.tokenizer, prompts, LONGEST)
        return [credit(right, answer_in(text)) for (_, right), text in zip(asked, written, strict=True)]

    def _said(self, text: str) -> dict[str, str]:
        if getattr(self.tokenizer, "chat_template", None):
            return {"system": SYSTEM, "question": text}
        return {"prompt": f"Question: {text}\nAnswer:"}


def problems(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Questions and their answers, all different, the same for the same seed."""
    rng = random.Random(f"arithmetic/{seed}")
    found: dict[str, int] = {}
    while len(found) < count:
        text, answer = KINDS[len(found) % len(KINDS)](rng)
        found.setdefault(text, answer)
    return list(found.items())


def credit(right: int, given: int | None) -> float:
    """How much of a number is right: the share of its digits that agree from the left or from the right.

    (digits in common at the beginning + those in common at the end, none counted twice) / (digits of the
    longer number): 1 for the number itself. 0 with a wrong sign, or for no number at all.
    """
    if given is None or (given < 0) != (right < 0):
        return 0.0
    ours, theirs = str(abs(right)), str(abs(given))
    shorter = min(len(ours), len(theirs))
    first = next((n for n in range(shorter) if ours[n] != theirs[n]), shorter)
    last = next((n for n in range(shorter - first) if ours[-1 - n] != theirs[-1 - n]), shorter - first)
    return (first + last) / max(len(ours), len(theirs))


def answer_in(text: str) -> int | None:
    """The last number in a text, its digits grouped or not, cut to a whole one; None if there is none."""
    numbers = [re.sub(r"[^\d-]", "", found.partition(".")[0]) for found in NUMBER.findall(text)]
    return int(numbers[-1][:100]) if numbers else None


def _digits(rng: random.Random, least: int, most: int) -> int:
    size = rng.randint(least, most)
    return rng.randrange(10 ** (size - 1), 10**size)


def _product(rng: random.Random) -> tuple[str, int]:
    a, b = _digits(rng, 4, 8), _digits(rng, 4, 8)
    return f"What is {a} times {b}?", a * b


def _sum(rng: random.Random) -> tuple[str, int]:
    a, b, c = (_digits(rng, 9, 14) for _ in range(3))
    return f"What is {a} plus {b} plus {c}?", a + b + c


def _difference(rng: random.Random) -> tuple[str, int]:
    a, b = _digits(rng, 10, 15), _digits(rng, 10, 15)
    return f"What is {a} minus {b}?", a - b


def _square(rng: random.Random) -> tuple[str, int]:
    a = _digits(rng, 4, 7)
    return f"What is {a} squared?", a * a


def _quotient(rng: random.Random) -> tuple[str, int]:
    a, b = _digits(rng, 4, 7), _digits(rng, 3, 5)
    return f"What is {a * b} divided by {b}?", a


def _root(rng: random.Random) -> tuple[str, int]:
    square = _digits(rng, 9, 14)
    return f"What is the square root of {square}, rounded down to a whole number?", isqrt(square)


KINDS = (_product, _sum, _difference, _square, _quotient, _root)
