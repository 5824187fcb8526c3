import random

import pytest

from restack.chat.programs import RepetitionDetector
from restack.demo.families import training_sample
from restack.errors import UsageError


def first(*texts, **settings):
    """The first repetition among messages."""
    detector = RepetitionDetector(**settings)
    return next((repeat for text in texts if (repeat := detector.hear(text))), None)


def numbers(*texts, **settings):
    repeat = first(*texts, **settings)
    return repeat and (repeat.number, repeat.of)


ASSIST = "I'm here to assist you! How can I help you today?"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([ASSIST, ASSIST], (2, 1)),
        (["Hello!", ASSIST, "I'm here to assist you. How can I help you today?"], (3, 2)),
        (["I'm here to assist you.", "I am here to assist you!"], (2, 1)),
        (["I'm here to assist you!", "I'm here to assist you too."], (2, 1)),
        (["I\u2019m here to assist you.", "I'M HERE TO ASSIST YOU"], (2, 1)),
        ([ASSIST, "I'm here to assist you as well! How may I help you today?"], (2, 1)),
        ([ASSIST, "Of course, I'm here to assist you. What can I help you with today?"], (2, 1)),
        (
            ["I'm here to assist you! How can I help?", "I'm here to help you. What can I assist with?"],
            (2, 1),
        ),
        # with a period of two, and of three turns
        (["Thank you for your kind words.", "You are most welcome, my friend."] * 2, (3, 1)),
        (
            ["Tell me more about it, please.", "There is nothing more to tell.", "Are you sure of that?"] * 2,
            (4, 1),
        ),
        # short ones, when what they answer is the same too
        (["Bye!", "Bye!", "Bye!"], (3, 2)),
        (["Thanks!", "You are welcome!", "Thanks!", "You are welcome!"], (4, 2)),
        (["...", "...", "..."], (3, 2)),
        (["我在这里为您提供帮助。", "您好！", "我在这里为您提供帮助！"], (3, 1)),
    ],
)
def test_what_repeats(texts, expected):
    assert numbers(*texts) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["Yes."],
        ["Is Rome in Italy?", "Yes.", "Is Bern in Peru?", "No.", "Is it?", "Yes.", "And you?", "Yes."],
        ["What is 3 + 4?", "3 + 4 = 7.", "What is 3 + 5?", "3 + 5 = 8."],
        ["The capital of France is Paris.", "The capital of Spain is Madrid."],
        ["Ben has 3 apples and gets 4 more. How many are there now?",
         "Ben has 5 apples and gets 2 more. How many are there now?"],
        ["Which city is it that is the capital of France?", "Which city is it that is the capital of Spain?"],
        ["I am going to the shop with you today.", "I am not going to the shop with you today."],
        ["Do you like the red apples?", "Do you like the green apples?"],
        ["Is 3 larger than 4, or is it the smaller one?", "Is 4 larger than 3, or is it the smaller one?"],
        ["", ""],
    ],
)  # fmt: skip
def test_what_does_not(texts):
    assert first(*texts) is None


@pytest.mark.parametrize("family", ["addition", "comparison", "word_problem", "lookup", "chain", "sorting"])
def test_questions_of_one_kind_and_their_answers_are_no_loop(family):
    rng = random.Random(0)
    turns = [training_sample(family, rng).turns[0] for _ in range(60)]
    asked = {turn.question: turn.answer for turn in turns}
    assert len(asked) > 50
    assert first(*(text for question in asked.items() for text in question)) is None


def test_the_threshold():
    texts = ["We could talk about the weather, the sea or the old town.",
             "We could talk about the weather, the hills or the new bridge."]  # fmt: skip
    assert first(*texts) is None
    repeat = first(*texts, threshold=0.7)
    assert (repeat.number, repeat.of) == (2, 1) and 0.7 <= repeat.likeness < 0.8


def test_what_was_said_long_ago_is_forgotten():
    others = [f"Here comes sentence number {number} of a long row." for number in range(12)]
    assert first(ASSIST, *others, ASSIST) is None
    assert numbers(ASSIST, *others[:11], ASSIST) == (13, 1)


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(UsageError, match="write a share of words above 0"):
        RepetitionDetector(threshold)
