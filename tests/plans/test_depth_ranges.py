"""Depth ranges: the examples of David's README, and an oracle in whole numbers."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import restack
from restack import Plan, PlanError
from restack.plans import depth_ranges, write_depth_ranges


def order(ranges: Any, depth: int) -> list[int]:
    return list(restack.plan(ratio_repeat=ranges, layers=depth).order)


@pytest.mark.parametrize(
    ("ranges", "depth", "expected"),
    [  # the first two are David's own
        ([(0, 0.3), (0.2, 0.4), (0.4, 0.5), (0.4, 1)], 10, [0, 1, 2, 3, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9]),
        ([(0, 0.5), (0.3, 0.8), (0.5, 1)], 7, [0, 1, 2, 3, 2, 3, 4, 5, 3, 4, 5, 6]),
        ([(0, 1)], 4, [0, 1, 2, 3]),
        ([(0.3, 0.5)], 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),  # filled at both ends
        ([(0, 0.2), (0.6, 1)], 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),  # and in between
        ([(0.5, 0.8), (0, 0.4)], 10, [*range(9), *range(5), *range(5, 10)]),
        ([(0.5, 0.5)], 10, [*range(10)]),
        ([(0, 1), (0.5, 0.5)], 10, [*range(10), 5, *range(6, 10)]),
        ([(1, 1)], 5, [0, 1, 2, 3, 4]),
        ([(0, 1), (1, 1)], 5, [0, 1, 2, 3, 4, 4]),
        ([(0, 1), (0, 0)], 3, [0, 1, 2, 0, 1, 2]),
        ([[0, 1], (0, 1)], 2, [0, 1, 0, 1]),
        ([(0, 1)], 1, [0]),
    ],
)
def test_examples(ranges: Any, depth: int, expected: list[int]) -> None:
    assert order(ranges, depth) == expected


@pytest.mark.parametrize(
    ("start", "depth", "layer"),
    [
        (0.29, 100, 29),  # floor(0.29 * 100) is 28 in binary
        (0.57, 100, 57),
        (0.1 + 0.2, 10, 3),
        (1 / 3, 30, 10),
        (2 / 3, 30, 20),
        (0.7 * 0.1, 100, 7),
        (Fraction(1, 3), 30, 10),
        (np.float32(0.3), 10, 3),
        (np.float64(0.29), 100, 29),
    ],
)
def test_arithmetic_is_exact(start: Any, depth: int, layer: int) -> None:
    assert order([(0, 1), (start, 1)], depth) == [*range(depth), *range(layer, depth)]


def test_a_sum_that_misses_one_is_one() -> None:
    below, above = 0.7 + 0.2 + 0.1, 1 + 2**-52
    assert below < 1 < above
    assert order([(0, below)], 10) == order([(0, above)], 10) == list(range(10))
    assert order([(0, 1), (below, above)], 10) == [*range(10), 9]


@st.composite
def percentages(draw: st.DrawFn) -> list[tuple[int, int]]:
    pair = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(lambda pair: (min(pair), max(pair)))
    return draw(st.lists(pair, min_size=1, max_size=6))


@given(percentages(), st.integers(1, 130))
def test_the_oracle_in_whole_numbers(ranges: list[tuple[int, int]], depth: int) -> None:
    expected: list[int] = []
    missing = 0
    for start, end in ranges:
        inside = [
            layer
            for layer in range(depth)
            if min(start * depth, 100 * depth - 100) < 100 * (layer + 1) and 100 * layer <= end * depth
        ]
        while missing < inside[0]:
            expected.append(missing)
            missing += 1
        expected += inside
        missing = inside[-1] + 1
    expected += list(range(missing, depth))
    assert order([(start / 100, end / 100) for start, end in ranges], depth) == expected


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([], "ratio_repeat is empty; write [(0, 0.5), (0.3, 1)]"),
        ([(0.5, 0.3)], "range (0.5, 0.3) starts past its end; write (0.3, 0.5)"),
        ([(0, 1.5)], "depth 1.5 is outside the model"),
        ([(-0.1, 1)], "depth -0.1 is outside the model"),
        ([(0, 10**400)], "is outside the model"),
        ([(0, float("nan"))], "depth nan is no number"),
        ([(0, float("inf"))], "depth inf is no number"),
        ([(0, True)], "depth True is no number"),
        ([(0, "1")], "depth '1' is no number"),
        ([(0, None)], "depth None is no number"),
        ([(0, 1j)], "is no number"),
        ([(0, 0.5, 1)], "(0, 0.5, 1) is no (start, end) range"),
        ([0, 0.5], "0 is no (start, end) range"),
        ([{0: 1, 1: 2}], "is no (start, end) range"),
        (["01"], "'01' is no (start, end) range"),
        ((0, 0.5), "0 is no (start, end) range"),
        (0.5, "0.5 is no list of (start, end) ranges"),
        ("(0,1)", "'(0,1)' is no list of (start, end) ranges"),
        ({(0, 0.5), (0.3, 1)}, "is no list of (start, end) ranges"),  # a set has no order
        ({(0, 0.5): 1}, "is no list of (start, end) ranges"),
        ([(0, 1)] * 20000, "more than 16384 visits"),
    ],
)
def test_refusals(ranges: Any, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        order(ranges, 10)
    assert said in str(caught.value)


@pytest.mark.parametrize("layers", [[0, 1, 2, 1, 2, 3], [0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 0, 1, 2, 3]])
def test_written_ranges_read_back(layers: list[int]) -> None:
    written = write_depth_ranges(Plan.of(layers, 4))
    assert all(0 <= start <= end <= 1 for start, end in written)
    assert order(written, 4) == layers


@pytest.mark.parametrize("text", ["0,2,3", "1:4", "3::-1", "0:3", "0:4@0.5", "0:4;kv=0_0_2_3"])
def test_plans_that_ranges_cannot_say(text: str) -> None:
    with pytest.raises(PlanError, match="write this plan as a spec"):
        write_depth_ranges(restack.plan(text, 4))


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("0:0.5,0.3:1", [(0, 0.5), (0.3, 1)]),
        ("0:.5, .3:1.", [(0, 0.5), (0.3, 1)]),
        (" 0:1 ", [(0, 1)]),
        ("3.05e-05:1E0", [(3.05e-05, 1)]),
        ("[(0, .5), (.3, 1)]", [(0, 0.5), (0.3, 1)]),
        ("[(0,.5),(.3,1)]", [(0, 0.5), (0.3, 1)]),
        ("[ ( 0 , 1 ) ]", [(0, 1)]),
    ],
)
def test_a_text_is_read(text: str, ranges: list[tuple[float, float]]) -> None:
    assert depth_ranges.parse(text) == ranges


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_both_spellings_of_any_ranges_are_read(ranges: list[tuple[float, float]]) -> None:
    assert depth_ranges.parse(str(ranges)) == ranges
    assert depth_ranges.parse(",".join(f"{start}:{end}" for start, end in ranges)) == ranges


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("(0:0.5", 0, "a depth should stand here"),
        ("(0, 0.5)", 0, "a depth should stand here"),
        ("0:1,", 4, "a depth should stand here"),
        ("0:1,,0:1", 4, "a depth should stand here"),
        (":1", 0, "a depth should stand here"),
        ("-0.1:1", 0, "a depth should stand here"),
        ("half:1", 0, "a depth should stand here"),
        ("\u0660:1", 0, "a depth should stand here"),
        ("0-1", 1, "a : should stand here"),
        ("0,1", 1, "a : should stand here"),
        ("0", 1, "a : should stand here"),
        ("0.5.5:1", 3, "a : should stand here"),
        ("0:1)", 3, "not part of a depth range"),
        ("0:1;0:1", 3, "not part of a depth range"),
        ("0:1 0:1", 4, "not part of a depth range"),
        ("[0:1", 1, "a ( should stand here"),
        ("[0:1]", 1, "a ( should stand here"),
        ("[]", 1, "a ( should stand here"),
        ("[(0:.5", 3, "a , should stand here"),
        ("[(0, .5", 7, "a ) should stand here"),
        ("[(0, .5, 1)]", 7, "a ) should stand here"),
        ("[(0, .5)", 8, "a ] should stand here"),
        ("[(0, .5),]", 9, "a ( should stand here"),
        ("[(0, .5)] 1", 10, "not part of a depth range"),
    ],
)
def test_errors_point_at_the_place(text: str, place: int, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        depth_ranges.parse(text)
    excerpt, pointer = str(caught.value).splitlines()
    assert excerpt == text
    assert pointer == " " * place + f"^ {said}; write 0:0.5,0.3:1 or [(0, 0.5), (0.3, 1)]"


@pytest.mark.parametrize("text", ["", "  "])
def test_no_ranges_at_all(text: str) -> None:
    with pytest.raises(PlanError, match="there are no depth ranges; write 0:0"):
        depth_ranges.parse(text)
