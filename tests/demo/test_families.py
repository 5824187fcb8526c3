"""The data: answers that are true, a split that leaks nothing, and a curriculum that keeps its word."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

import pytest

from restack.demo import corpus, curriculum, world
from restack.demo.families import (
    CHANCE,
    EXTRAS,
    FAMILIES,
    Sample,
    arithmetic,
    depth,
    probe_sample,
    stories,
    training_sample,
)
from restack.demo.probes import probes


def samples(family: str, n: int = 300) -> Iterator[Sample]:
    rng = random.Random(family)
    for _ in range(n):
        yield probe_sample(family, rng) if family == "long_chain" else training_sample(family, rng)


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def normalised(question: str) -> str:
    """What is left of a question however it was typed."""
    return re.sub(r",? please|[^\w\s=+-]", "", question.lower()).strip()


def test_every_family_has_a_chance_level_and_all_but_one_a_share() -> None:
    assert set(CHANCE) == set(FAMILIES)
    for stage in curriculum.STAGES:
        mix = set(stage.mix)
        assert mix <= set(EXTRAS) if stage.drills else set(FAMILIES) - {"long_chain"} <= mix
        assert mix <= (set(FAMILIES) - {"long_chain"}) | set(EXTRAS)


@pytest.mark.parametrize("family", ["addition", "subtraction", "working", "steps", "large", "word_problem"])
def test_sums_are_right(family: str) -> None:
    for sample in samples(family):
        answer = sample.turns[0].answer
        a, sign, b, result = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", answer)[-1]
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert numbers(sample.turns[0].question)[:2] == [int(a), int(b)]


@pytest.mark.parametrize("make", [arithmetic.working, arithmetic.multiplication])
def test_every_line_of_a_working_is_right(make: object) -> None:
    rng = random.Random(1)
    for _ in range(300):
        answer = make(rng).turns[0].answer  # type: ignore[operator]
        for left, right in re.findall(r"([\dx+ ]+) = (\d+)", answer):
            assert eval(left.replace("x", "*")) == int(right)


def test_the_working_reads_as_documented() -> None:
    expected = "8 + 5 = 13; 4 + 7 + 1 = 12; 3 + 2 + 1 = 6. So 348 + 275 = 623."
    assert arithmetic.columns(348, 275) == expected


def test_comparison_lists_and_counting_are_right() -> None:
    for sample in samples("comparison"):
        pick = max if "larger" in sample.turns[0].question else min
        assert numbers(sample.turns[0].answer) == [pick(numbers(sample.turns[0].question))]
    for family, key in (("reversal", None), ("sorting", sorted)):
        for sample in samples(family):
            words = [w for w in sample.turns[0].question.split(": ")[-1].split() if w]
            words = words or sample.turns[0].question.split("list ")[-1].split()
            expected = key(words) if key else list(reversed(words))
            assert sample.turns[0].answer.split() == expected
    for sample in samples("counting"):
        counted, ends = numbers(sample.turns[0].answer), numbers(sample.turns[0].question)
        assert [counted[0], counted[-1]] == ends
        assert {abs(a - b) for a, b in itertools.pairwise(counted)} == {1}


def follow(context: str, variable: str) -> tuple[str, int]:
    """The word at the end of a chain, and the hops to it."""
    values = dict(re.findall(r"([a-z]) = ([a-z]+)", context))
    hops = 0
    while len(values[variable]) == 1:
        variable, hops = values[variable], hops + 1
    return values[variable], hops


@pytest.mark.parametrize("hops", dict.fromkeys(stage.hops for stage in curriculum.STAGES), ids=str)
def test_chains_are_right_and_never_longer_than_asked(hops: depth.Hops) -> None:
    rng = random.Random(hops.most)
    seen = set()
    for _ in range(300):
        sample = training_sample("chain", rng, hops)
        for turn in sample.turns:
            variable = re.findall(r"What is ([a-z])\?", turn.question)[0]
            word, distance = follow(sample.key, variable)
            assert turn.answer == f"{word}."
            seen.add(distance)
    assert seen == set(range(hops.fewest, hops.most + 1))


def test_long_chains_are_five_to_eight_hops_and_never_trained() -> None:
    hops = set()
    for sample in samples("long_chain"):
        variable = re.findall(r"What is ([a-z])\?", sample.turns[0].question)[0]
        word, distance = follow(sample.key, variable)
        assert sample.turns[0].answer == f"{word}."
        hops.add(distance)
    assert hops == {5, 6, 7, 8} == set(depth.LONG_HOPS)
    with pytest.raises(ValueError, match="probes only"):
        training_sample("long_chain", random.Random(0))


def said_pairs(text: str) -> set[frozenset[str]]:
    """The pairs in a drill's sentence, whatever words stand between and around them."""
    words = [word for word in re.findall(r"\w+", text) if word not in GLUE]
    assert len(words) % 2 == 0
    return {frozenset(pair) for pair in zip(words[::2], words[1::2], strict=True)}


GLUE = {"Say", "Again", "Swapped", "has", "What", "is", "Who", "the"}


def test_drills_are_right() -> None:
    for family in ("pairs", "swapped", "restated"):
        for sample in samples(family):
            # Without the article, not without the variable "a".
            said = [
                said_pairs(text.replace(" has a ", " has "))
                for text in (sample.turns[0].question, sample.turns[0].answer)
            ]
            assert said[0] == said[1]
    for sample in samples("swapped"):
        (turn,) = sample.turns
        keys = re.findall(r"\w+", turn.question)[1::2]
        assert set(re.findall(r"\w+", turn.answer)[2::2]) == set(keys)
    for sample in samples("resolved"):
        (turn,) = sample.turns
        for variable, its, shown in re.findall(r"(\b[a-z]) = ([a-z]+) ?([a-z]*)", sample.key):
            assert shown in ("", follow(sample.key, variable)[0]), (variable, its)
        for variable, word in re.findall(r"\b([a-z]) is ([a-z]+)", turn.answer):
            assert word == follow(sample.key, variable)[0]
        assert turn.question_weight is not None and turn.question_weight > corpus.USER_WEIGHT


def whereabouts(story: str) -> dict[str, str]:
    """An independent reading of a tracking context: where everything is."""
    at: dict[str, str] = {}
    holds: dict[str, str] = {}
    for name, verb, target in re.findall(r"(\w+) (went to|took|dropped) the (\w+)\.", story):
        if verb == "went to":
            at[name] = target
        elif verb == "took":
            holds[target] = name
        else:
            del holds[target]
            at[target] = at[name]
    return at | {thing: at[name] for thing, name in holds.items()}


def test_tracking_and_lookups_are_right() -> None:
    for sample in samples("tracking"):
        at = whereabouts(sample.key)
        for turn in sample.turns:
            who = re.findall(r"Where is (?:the )?(\w+)\?$", turn.question)[0]
            assert turn.answer.endswith(f"{who} is in the {at[who]}.")
    for sample in samples("lookup"):
        for turn in sample.turns:
            owner, thing = re.findall(r"^(\w+) has (?:a|the) (\w+)\.$", turn.answer)[0]
            assert f"{owner} has a {thing}." in sample.key


def test_the_story_checker_passes_every_story_and_no_other() -> None:
    for sample in samples("story"):
        name, thing = sample.key.split()
        story = sample.turns[0].answer
        assert stories.well_told(story, name, thing)
        stranger = next(other for other in world.NAMES if other != name)
        other_thing = next(other for other in world.THINGS if other != thing)
        assert not stories.well_told(story, stranger, thing)
        assert not stories.well_told(story.replace(thing, other_thing, 1), name, thing)
        assert not stories.well_told(story[:-1], name, thing)
        assert not stories.well_told(f"{story} {stranger} was glad.", name, thing)
        assert not stories.well_told(
            story.replace(" her ", " him ").replace(" his ", " her "), name, thing
        ) or (" her " not in story and " his " not in story)


@pytest.mark.parametrize("least", [15_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_no_probe_is_ever_a_training_question(least: int) -> None:
    """Turns as they are trained on, styles and all, against 300 probes of every family."""
    asked = {
        normalised(probe.question): family for family in FAMILIES for probe in probes(family, 300, seed=5)
    }
    named = {normalised(probe.question) for probe in probes("greeting", 300, seed=5) if probe.system}
    rng = random.Random(7)
    turns = 0
    while turns < least:
        system, conversation = corpus.conversation(rng, 12)
        turns += len(conversation)
        for turn in conversation:
            question = normalised(turn.question)
            assert question not in asked or question in named, (asked.get(question), turn)
        assert system is None or not any(name in system for name in held_out_names())


def held_out_names() -> set[str]:
    return {probe.system.split()[-1].strip(".") for probe in probes("greeting", 50) if probe.system} & set(
        world.ASSISTANTS
    )


def test_probes_are_reproducible_and_differ_by_seed() -> None:
    for family in FAMILIES:
        assert probes(family, 20, seed=1) == probes(family, 20, seed=1)
        assert probes(family, 20, seed=1) != probes(family, 20, seed=2) or family == "greeting"
