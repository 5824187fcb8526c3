"""Look-ups, tracking and pointer chains: what must be read several times over to be answered.

The drills at the end are trained on only. `pairs` comes first of all: matching a key with its earlier
occurrence is what every look-up here rests on, and nothing else was seen to teach it within the hour.

A context is asked about several times in a row in training (it costs more tokens than a question does);
a probe asks once. The context is the key.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from restack.demo import world
from restack.demo.families.turns import Sample, Turn, one

TRAINED_HOPS = 4
LONGEST = 9  # variables in a chain, so 8 hops at most
LONG_HOPS = range(TRAINED_HOPS + 1, LONGEST)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Hops:
    """How many hops away the variables are that chains are asked for."""

    fewest: int
    most: int


PROBED = Hops(1, TRAINED_HOPS)  # what probes ask for


def lookup(rng: random.Random) -> Sample:
    """Three to five people own a thing each; who owns this, what does she own. Chance: 0.26."""
    count = rng.randint(3, 5)
    pairs = list(zip(rng.sample(world.NAMES, count), rng.sample(world.THINGS, count), strict=True))
    context = " ".join(f"{name} has a {thing}." for name, thing in pairs)
    questions = []
    for name, thing in rng.sample(pairs, 3):
        if rng.random() < 0.5:
            questions.append((f"What does {name} have?", f"{name} has a {thing}."))
        else:
            questions.append((f"Who has the {thing}?", f"{name} has the {thing}."))
    return _asked(context, questions)


def absent(rng: random.Random) -> Sample:
    """A look-up of somebody, or something, that was not mentioned."""
    names, things = rng.sample(world.NAMES, 4), rng.sample(world.THINGS, 4)
    context = " ".join(f"{name} has a {thing}." for name, thing in zip(names[1:], things[1:], strict=True))
    question = rng.choice((f"What does {names[0]} have?", f"Who has the {things[0]}?"))
    return _asked(context, [(question, "I do not know.")])


def tracking(rng: random.Random) -> Sample:
    """Two or three people walk about, take things along and put them down; where is X? (After bAbI, task 2.)

    The places mentioned are two to four, which makes chance about 0.35.
    """
    people = rng.sample(world.NAMES, rng.randint(2, 3))
    places = rng.sample(world.PLACES, rng.randint(2, 4))
    things = rng.sample(world.THINGS, 2)
    at: dict[str, str] = {}  # where a person is, or a thing that nobody carries
    carrier: dict[str, str] = {}
    events = []
    for _ in range(rng.randint(4, 8)):
        person = rng.choice(people)
        free = [
            thing
            for thing in things
            if thing not in carrier and at.get(thing, at.get(person)) == at.get(person)
        ]
        held = [thing for thing in things if carrier.get(thing) == person]
        act = rng.random()
        if person in at and free and act < 0.45:
            thing = rng.choice(free)
            carrier[thing] = person
            events.append(f"{person} took the {thing}.")
        elif held and act < 0.6:
            thing = rng.choice(held)
            del carrier[thing]
            at[thing] = at[person]
            events.append(f"{person} dropped the {thing}.")
        else:
            at[person] = rng.choice([place for place in places if place != at.get(person)])
            events.append(f"{person} went to the {at[person]}.")
    for thing, person in carrier.items():
        at[thing] = at[person]
    return _asked(" ".join(events), _whereabouts(rng, at, things), weight=2.0)


def _whereabouts(rng: random.Random, at: dict[str, str], things: list[str]) -> list[tuple[str, str]]:
    """Up to three questions; a thing is asked for first where one has been moved."""
    moved = [thing for thing in things if thing in at]
    people = [name for name in at if name not in things]
    rng.shuffle(people)
    names = [*moved, *people] if moved and rng.random() < 0.8 else [*people, *moved]
    spoken = {name: f"the {name}" if name in things else name for name in names}
    return [
        (f"Where is {spoken[name]}?", f"{'The ' + name if name in things else name} is in the {at[name]}.")
        for name in names[:3]
    ]


def chain(rng: random.Random, hops: Hops = PROBED) -> Sample:
    """Variables that name variables that name a word; what is this one, so many hops away? No working.

    Two chains (three now and then) of one length, interleaved: the words at their ends are equally likely
    by every count, so chance is 1/2 (1/3). Chains grow with the hops.
    """
    chains = 3 if rng.random() < 0.2 else 2
    length = rng.randint(2, min(2 * hops.most + 1, LONGEST if chains == 2 else 6))
    context, names, values = _chains(rng, chains, length)
    questions = []
    for _ in range(5):
        which, hop = rng.randrange(chains), rng.randint(hops.fewest, min(hops.most, length - 1))
        question = (f"What is {names[which][hop]}?", f"{values[which]}.")
        if question not in questions:
            questions.append(question)
    return _asked(context, questions, weight=3.0)


def long_chain(rng: random.Random) -> Sample:
    """Two chains, asked for five to eight hops: never asked in training. Chance: 1/2."""
    hop = rng.choice(LONG_HOPS)
    context, names, values = _chains(rng, 2, rng.randint(hop + 1, LONGEST))
    which = rng.randrange(2)
    return _asked(context, [(f"What is {names[which][hop]}?", f"{values[which]}.")])


def pairs(rng: random.Random) -> Sample:
    """A drill: names or letters, each followed by its word, said again in another order."""
    return _pairs(rng, "Again", "{0} {1}")


def swapped(rng: random.Random) -> Sample:
    """A drill: the same said again with each word before its name, as "who has it?" asks."""
    return _pairs(rng, "Swapped", "{1} {0}")


def _pairs(rng: random.Random, again: str, said: str) -> Sample:
    count = rng.randint(2, 5)
    keys = rng.sample(rng.choice((LETTERS, world.NAMES)), count)
    values = rng.sample(rng.choice((world.WORDS, world.THINGS)), count)
    both = list(zip(keys, values, strict=True))
    question = f"Say {' '.join(f'{key} {value}' for key, value in both)}."
    return one(question, f"{again} {' '.join(said.format(*pair) for pair in rng.sample(both, count))}.")


def restated(rng: random.Random) -> Sample:
    """A drill: pairs written in one way, said again in another way and order.

    A look-up needs its key found in the question and in the text, each some words away; every combination of
    ways trains one of the two while the other is easy.
    """
    count = rng.randint(2, 5)
    keys = rng.sample(rng.choice((LETTERS, world.NAMES)), count)
    values = rng.sample(rng.choice((world.WORDS, world.THINGS)), count)
    both = list(zip(keys, values, strict=True))
    written, said = rng.choice(WAYS[:3]), rng.choice(WAYS)
    text = " ".join(written.format(key, value) for key, value in both)
    again = " ".join(said.format(key, value) for key, value in rng.sample(both, count))
    return one(f"Say {text}", f"Again {again}")


WAYS = (
    "{0} {1}",
    "{0} = {1};",
    "{0} has a {1}.",
    "{1} {0}",
    "What is {0}? {1}.",
    "Who has the {1}? {0}.",
)


def recall(rng: random.Random) -> Sample:
    """A drill: up to eight variables with words of their own, all of them asked for at once."""
    count = rng.randint(3, 8)
    pairs = list(zip(rng.sample(LETTERS, count), rng.sample(world.WORDS, count), strict=True))
    context = f"Let {'; '.join(f'{name} = {word}' for name, word in pairs)}."
    return _roll(rng, context, pairs)


def roll(rng: random.Random, hops: Hops = PROBED) -> Sample:
    """A drill: the variables of two chains, up to so many hops away, all asked for at once."""
    length = rng.randint(2, min(2 * hops.most + 1, LONGEST))
    context, names, values = _chains(rng, 2, length)
    pairs = [
        (name, value) for chain, value in zip(names, values, strict=True) for name in chain[: hops.most + 1]
    ]
    return _roll(rng, context, pairs)


def _roll(rng: random.Random, context: str, pairs: list[tuple[str, str]]) -> Sample:
    asked = rng.sample(pairs, min(len(pairs), 8))
    question = f"What are {', '.join(name for name, _ in asked)}?"
    return _asked(
        context, [(question, "; ".join(f"{name} is {word}" for name, word in asked) + ".")], weight=2.0
    )


def resolved(rng: random.Random, hops: Hops = PROBED) -> Sample:
    """A drill: `roll` of chains in which a variable's word follows it now and then, as in b = a cow.

    Whoever expects it there has followed the chain that far while reading it.
    """
    length = rng.randint(2, min(2 * hops.most + 1, LONGEST))
    context, names, values = _chains(rng, 2, length, shown=0.5)
    pairs = [(name, value) for chain, value in zip(names, values, strict=True) for name in chain]
    (turn,) = _roll(rng, context, pairs).turns
    return Sample((replace(turn, question_weight=0.5),), context)


def everyone(rng: random.Random) -> Sample:
    """A drill: what all of some people have, or who has all of some things, asked for at once."""
    count = rng.randint(2, 5)
    pairs = list(zip(rng.sample(world.NAMES, count), rng.sample(world.THINGS, count), strict=True))
    context = " ".join(f"{name} has a {thing}." for name, thing in pairs)
    rng.shuffle(pairs)
    if rng.random() < 0.5:
        question = f"What do {', '.join(name for name, _ in pairs)} have?"
        answer = " ".join(f"{name} has a {thing}." for name, thing in pairs)
    else:
        question = f"Who has the {', '.join(thing for _, thing in pairs)}?"
        answer = " ".join(f"{name} has the {thing}." for name, thing in pairs)
    return _asked(context, [(question, answer)], weight=2.0)


def _chains(
    rng: random.Random, chains: int, length: int, shown: float = 0.0
) -> tuple[str, list[list[str]], list[str]]:
    """Chains of `length` variables, interleaved at random: the text, the variables by hop, the words.

    `shown` is the share of the variables behind which the word stands that they are worth.
    """
    letters = rng.sample(LETTERS, chains * length)
    names = [letters[which * length : (which + 1) * length] for which in range(chains)]
    values = rng.sample(world.WORDS, chains)
    order = [which for which in range(chains) for _ in range(length)]
    rng.shuffle(order)
    done = [0] * chains
    parts = []
    for which in order:
        hop = done[which]
        part = f"{names[which][hop]} = {names[which][hop - 1] if hop else values[which]}"
        parts.append(f"{part} {values[which]}" if shown and hop and rng.random() < shown else part)
        done[which] += 1
    return f"Let {'; '.join(parts)}.", names, values


def _asked(context: str, questions: list[tuple[str, str]], weight: float = 1.0) -> Sample:
    (question, answer), *more = questions
    first = Turn(f"{context} {question}", answer, weight=weight)
    return Sample((first, *(Turn(q, a, weight=weight) for q, a in more)), context)
