"""Arithmetic. Operands decide the split, so a pair of numbers is held out of every family at once."""

from __future__ import annotations

import random

from restack.demo import world
from restack.demo.families.turns import Sample, Turn, one, operands

STEPS = "Let's think step by step."
SHOW = (
    "{} Show your working.",
    "{} Show the working.",
    "{} Think step by step.",
    "{} Work it out step by step.",
)


def addition(rng: random.Random) -> Sample:
    """Two two-digit numbers, answered at once."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    question = rng.choice(("What is {} + {}?", "What is {} plus {}?", "Add {} and {}.", "{} + {}")).format(
        a, b
    )
    return one(question, f"{a} + {b} = {a + b}.", operands(a, b))


def subtraction(rng: random.Random) -> Sample:
    """Two two-digit numbers, the smaller from the larger, answered at once."""
    b, a = sorted(rng.randint(10, 99) for _ in range(2))
    question = rng.choice(("What is {} - {}?", "What is {} minus {}?", "{} - {}")).format(a, b)
    return one(question, f"{a} - {b} = {a - b}.", operands(a, b))


def working(rng: random.Random) -> Sample:
    """Two three-digit numbers added column by column, because the question asks for the working."""
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    question = rng.choice(SHOW).format(_plain_sum(rng, a, b))
    return one(question, columns(a, b), operands(a, b))


def steps(rng: random.Random) -> Sample:
    """A plain sum whose answer was begun with the words that ask for the working."""
    low = rng.choice((10, 100, 100))
    a, b = rng.randint(low, low * 10 - 1), rng.randint(low, low * 10 - 1)
    turn = Turn(_plain_sum(rng, a, b), f"{STEPS}\n{columns(a, b)}", given=STEPS)
    return Sample((turn,), operands(a, b))


def large(rng: random.Random) -> Sample:
    """A plain sum of three-digit numbers answered at once: hard for so small a model, and it shows."""
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    return one(_plain_sum(rng, a, b), f"{a} + {b} = {a + b}.", operands(a, b))


def multiplication(rng: random.Random) -> Sample:
    """A two-digit number times a digit, with the working: ones, tens, carry."""
    a, b = rng.randint(10, 99), rng.randint(2, 9)
    ones, tens = a % 10 * b, a // 10 * b
    question = rng.choice(
        ("What is {} times {}?", "What is {} x {}?", "Multiply {} by {}.", "{} x {}")
    ).format(a, b)
    answer = (
        f"{a % 10} x {b} = {ones}; {a // 10} x {b} = {tens}; {tens} + {ones // 10} = {tens + ones // 10}. "
        f"So {a} x {b} = {a * b}."
    )
    return one(question, answer, operands(a, b))


def comparison(rng: random.Random) -> Sample:
    """Which of two numbers is larger, or smaller. Half of the pairs are close to each other."""
    top = rng.choice((99, 999))
    a = rng.randint(1, top)
    b = rng.randint(1, top) if rng.random() < 0.5 else min(top, max(1, a + rng.randint(-12, 12)))
    if a == b:
        b = a - 1 if a == top else a + 1
    word = rng.choice(("larger", "smaller"))
    best = max(a, b) if word == "larger" else min(a, b)
    question = rng.choice((
        "Which is {word}, {a} or {b}?", "Which number is {word}: {a} or {b}?", "What is {word}, {a} or {b}?",
    ))  # fmt: skip
    return one(question.format(word=word, a=a, b=b), f"{best} is {word}.", operands(a, b))


def word_problem(rng: random.Random) -> Sample:
    """A sum told as a story of one or two sentences."""
    name, other = rng.sample(world.NAMES, 2)
    item = rng.choice(world.ITEMS)
    more = rng.random() < 0.5
    a, b = rng.randint(2, 60), rng.randint(2, 30)
    if not more and b >= a:
        a, b = b + 1, a
    patterns = MORE if more else FEWER
    story = rng.choice(patterns).format(name=name, other=other, a=a, b=b, item=item)
    left = a + b if more else a - b
    thing = item.removesuffix("s") if left == 1 else item
    answer = f"{a} {'+' if more else '-'} {b} = {left}. {name} has {left} {thing}."
    return one(story, answer, operands(a, b))


MORE = (
    "{name} has {a} {item} and finds {b} more. How many {item} does {name} have now?",
    "{name} has {a} {item}. {other} gives {name} {b} {item}. How many {item} does {name} have now?",
    "{name} has {a} {item} and buys {b} more. How many {item} does {name} have?",
)
FEWER = (
    "{name} has {a} {item} and loses {b} of them. How many {item} does {name} have now?",
    "{name} has {a} {item}. {name} gives {b} {item} to {other}. How many {item} does {name} have left?",
    "{name} has {a} {item} and sells {b} of them. How many {item} does {name} have left?",
)


def columns(a: int, b: int) -> str:
    """The written sum, ones first, as in "8 + 5 = 13; 4 + 7 + 1 = 12; 3 + 2 + 1 = 6. So 348 + 275 = 623."""
    parts, carry = [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        total = int(x) + int(y) + carry
        parts.append(f"{x} + {y}{' + 1' if carry else ''} = {total}")
        carry = total // 10
    return f"{'; '.join(parts)}. So {a} + {b} = {a + b}."


def _plain_sum(rng: random.Random, a: int, b: int) -> str:
    return rng.choice(("What is {} + {}?", "What is {} plus {}?", "Add {} and {}.")).format(a, b)
