"""Depth ranges, `ratio_repeat`, as the README of EGjoni/David means them (its code differs).

A depth d lies in layer min(floor(d * n), n - 1); a range runs from the layer its start lies in through the
layer its end lies in. Gaps are filled: before the first range, after the last, and between two when the next
starts past the end of the one before.
"""

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from numbers import Rational, Real
from typing import Any

from restack.errors import PlanError
from restack.plans.pointing import error_at, shown
from restack.plans.value import Plan

EXAMPLE = "write [(0, 0.5), (0.3, 1)]"
REMEDY = "write 0:0.5,0.3:1 or [(0, 0.5), (0.3, 1)]"
NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
DEPTHS = "depths run from 0, the first layer, to 1, the last"


def read(ranges: Any, depth: int) -> Plan:
    """The plan of a model with `depth` layers that runs these (start, end) ranges.

    Arithmetic is exact: a float stands for the nearest fraction with a denominator of at most a million, so
    that 0.29 of 100 layers is 29.

    Raises:
        PlanError: no ranges; a range that is no pair of numbers from 0 to 1, or whose start is past its end.
    """
    if not isinstance(ranges, Sequence) or isinstance(ranges, str | bytes):
        raise PlanError(f"{shown(ranges)} is no list of (start, end) ranges; {EXAMPLE}")
    if not ranges:
        raise PlanError(f"ratio_repeat is empty; {EXAMPLE}")
    return Plan.of(_layers(ranges, depth), depth)


def parse(text: str) -> list[tuple[float, float]]:
    """The ranges that a text writes, for `read`: 0:0.5,0.3:1, or Python's [(0, .5), (.3, 1)].

    Raises:
        PlanError: it is neither; the error points at the place.
    """
    text = text.strip()
    if not text:
        raise PlanError(f"there are no depth ranges; {REMEDY}")
    listed = text.startswith("[")
    opening, between, closing = ("(", ",", ")") if listed else ("", ":", "")
    ranges: list[tuple[float, float]] = []
    at = 1 if listed else 0
    while True:
        start, at = _number(text, _past(text, at, opening))
        end, at = _number(text, _past(text, at, between))
        ranges.append((start, end))
        at = _past_blanks(text, _past(text, at, closing))
        if not text.startswith(",", at):
            break
        at += 1
    if listed:
        at = _past_blanks(text, _past(text, at, "]"))
    if at < len(text):
        raise error_at(text, at, at + 1, "not part of a depth range", REMEDY)
    return ranges


def write(plan: Plan) -> list[tuple[float, float]]:
    """Depth ranges that `read` turns into this plan: the middle of each first and last layer.

    Raises:
        PlanError: ranges cannot say this plan: it skips layers, or does more than order those of one model.
    """
    if not plan.is_plain:
        raise PlanError("depth ranges only order the layers of one model; write this plan as a spec")
    depth = plan.depths[0]
    result = [(_middle(run[0], depth), _middle(run[-1], depth)) for run in plan.runs]
    if read(result, depth) != plan:
        raise PlanError("depth ranges fill every gap, so they cannot skip layers; write this plan as a spec")
    return result


def _number(text: str, at: int) -> tuple[float, int]:
    """The number at a place of a text, and the place after it."""
    at = _past_blanks(text, at)
    found = NUMBER.match(text, at)
    if not found:
        raise error_at(text, at, at + 1, "a depth should stand here", REMEDY)
    return float(found[0]), found.end()


def _past(text: str, at: int, symbol: str) -> int:
    """The place after a symbol that must stand here."""
    at = _past_blanks(text, at)
    if not text.startswith(symbol, at):
        raise error_at(text, at, at + 1, f"a {symbol} should stand here", REMEDY)
    return at + len(symbol)


def _past_blanks(text: str, at: int) -> int:
    while text.startswith(" ", at):
        at += 1
    return at


def _layers(ranges: Sequence[Any], layers: int) -> Iterator[int]:
    """The layers of the ranges and the gaps between them, one by one: a plan stops at its limit."""
    done = 0  # the layer after the range before
    for entry in ranges:
        match entry:
            case [_, _]:
                start, end = map(_depth, entry)
            case _:
                raise PlanError(f"{shown(entry)} is no (start, end) range; {EXAMPLE}")
        if start > end:
            remedy = f"write ({shown(entry[1])}, {shown(entry[0])})"
            raise PlanError(f"range {shown(entry)} starts past its end; {remedy}")
        first, last = _layer_at(start, layers), _layer_at(end, layers)
        yield from range(done, first)
        yield from range(first, last + 1)
        done = last + 1
    yield from range(done, layers)


def _depth(value: Any) -> Fraction:
    try:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        exact = Fraction(value) if isinstance(value, Rational) else Fraction(float(value))
    except (TypeError, ValueError, OverflowError):  # the last two: nan and infinity
        raise PlanError(f"depth {shown(value)} is no number; {DEPTHS}") from None
    depth = exact.limit_denominator(10**6)
    if not 0 <= depth <= 1:
        raise PlanError(f"depth {shown(value)} is outside the model; {DEPTHS}")
    return depth


def _layer_at(depth: Fraction, layers: int) -> int:
    return min(math.floor(depth * layers), layers - 1)


def _middle(layer: int, layers: int) -> float:
    return (2 * layer + 1) / (2 * layers)
