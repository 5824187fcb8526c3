"""Facts: memorised, so what is held out is a phrasing of each relation (the last one)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from restack.demo import world
from restack.demo.families.turns import Sample, one


@dataclass(frozen=True, slots=True)
class Relation:
    """Pairs (x, y), the ways to ask for y given x (the last is for probes), and the one way to answer."""

    pairs: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]
    answer: str

    def sample(self, rng: random.Random, probe: bool) -> Sample:
        x, y = rng.choice(self.pairs)
        phrasing = self.phrasings[-1] if probe else rng.choice(self.phrasings[:-1])
        return one(sentence(phrasing, x, y), sentence(self.answer, x, y))

    def statement(self, rng: random.Random) -> str:
        x, y = rng.choice(self.pairs)
        return sentence(self.answer, x, y)


def sentence(pattern: str, x: str, y: str) -> str:
    """Fills in x, y and their articles; begins with a capital."""
    text = pattern.format(x=x, y=y, ax=world.article(x), ay=world.article(y))
    return text[0].upper() + text[1:]


def _following(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return zip(names, names[1:] + names[:1], strict=True)


def _items(mapping: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(mapping.items())


RELATIONS = (
    Relation(
        _items(world.CAPITALS),
        (
            "What is the capital of {x}?",
            "Name the capital of {x}.",
            "Which city is the capital of {x}?",
            "Tell me the capital city of {x}.",
            "What is the name of the capital city of {x}?",
        ),
        "The capital of {x} is {y}.",
    ),
    Relation(
        tuple((city, country) for country, city in world.CAPITALS.items()),
        (
            "{x} is the capital of which country?",
            "What country has the capital {x}?",
            "Which country has {x} as its capital?",
        ),
        "{x} is the capital of {y}.",
    ),
    Relation(
        tuple(pair for a, b in world.OPPOSITES for pair in ((a, b), (b, a))),
        (
            "What is the opposite of {x}?",
            "Name the opposite of {x}.",
            "Tell me the opposite of the word {x}.",
            "Which word is the opposite of {x}?",
        ),
        "The opposite of {x} is {y}.",
    ),
    Relation(
        _items(world.SOUNDS),
        (
            "What does {ax} say?",
            "What sound does {ax} make?",
            "Which sound comes from {ax}?",
            "Tell me what sound {ax} makes.",
        ),
        "{ax} says {y}.",
    ),
    Relation(
        _items(world.COLOURS),
        (
            "What colour is {x}?",
            "Tell me the colour of {x}.",
            "Which colour is {x}?",
            "What is the colour of {x}?",
        ),
        "{x} is {y}.",
    ),
    Relation(
        _items(world.YOUNG),
        (
            "What is a young {x} called?",
            "What do you call a young {x}?",
            "Name the young of {ax}.",
            "Tell me what a young {x} is called.",
        ),
        "A young {x} is called a {y}.",
    ),
    Relation(
        _items(world.LEGS),
        (
            "How many legs does {ax} have?",
            "Tell me how many legs {ax} has.",
            "What is the number of legs of {ax}?",
            "How many legs has {ax}?",
        ),
        "{ax} has {y} legs.",
    ),
    Relation(
        _items(world.KINDS),
        (
            "What kind of thing is {ax}?",
            "What is {ax}?",
            "Which kind of thing is {ax}?",
            "Tell me what kind of thing {ax} is.",
        ),
        "{ax} is a {y}.",
    ),
    Relation(
        _items(world.HOMES),
        ("Where does {ax} live?", "What is the home of {ax}?", "Tell me where {ax} lives."),
        "{ax} lives in a {y}.",
    ),
    Relation(
        tuple(_following(world.DAYS)) + tuple(_following(world.MONTHS)),
        ("What comes after {x}?", "Name what comes after {x}.", "Which one comes after {x}?"),
        "{y} comes after {x}.",
    ),
)


def fact(rng: random.Random, probe: bool) -> Sample:
    """A question about the world. Capitals come up most: there are the most of them."""
    (relation,) = rng.choices(RELATIONS, weights=[len(r.pairs) for r in RELATIONS])
    return relation.sample(rng, probe)


def statement(rng: random.Random) -> str:
    """A fact as a plain sentence."""
    return rng.choice(RELATIONS).statement(rng)
