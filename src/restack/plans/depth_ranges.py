"""Depth ranges, `ratio_repeat`, as the README of EGjoni/David means them (its code differs).

A depth d lies in layer min(floor(d * n), n - 1); a range runs from the layer its start lies in through the layer its
end lies in. Gaps are filled: before the first range, after the last, and between two when the next starts past the end
of the one before.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from restack.errors import PlanError
from restack.plans.value import Plan

EXAMPLE = "write [(0, 0.5), (0.3, 1)]"


def read(ranges: Any, depth: int) -> Plan:
    """The plan of a model with `depth` layers that runs these (start, end) ranges, 0 the first layer and 1 the last.

    Arithmetic is exact: a float stands for the nearest fraction with a denominator of at most a million, so that
    0.29 of 100 layers is 29.

    Raises:
        PlanError: no ranges; a range that is no pair of numbers from 0 to 1, or whose start is past its end.
    """
    try:
        pairs = [tuple(pair) for pair in ranges]
    except TypeError:
        raise PlanError(f"{ranges!r} is no list of (start, end) ranges; {EXAMPLE}") from None
    if not pairs:
        raise PlanError(f"ratio_repeat is empty; {EXAMPLE}")
    layers: list[int] = []
    for pair in pairs:
        if len(pair) != 2:
            raise PlanError(f"{pair!r} is no (start, end) range; {EXAMPLE}")
        start, end = (_layer(number, depth) for number in map(_depth, pair))
        if _depth(pair[0]) > _depth(pair[1]):
            raise PlanError(f"range {pair!r} starts past its end; write ({pair[1]}, {pair[0]})")
        filled = range(layers[-1] + 1 if layers else 0, start)
        layers += [*filled, *range(start, end + 1)]
    return Plan.of([*layers, *range(layers[-1] + 1, depth)], depth)


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


def _depth(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not math.isfinite(value):
        raise PlanError(f"depth {value!r} is no number; depths run from 0, the first layer, to 1, the last")
    depth = Fraction(value).limit_denominator(10**6)
    if not 0 <= depth <= 1:
        raise PlanError(
            f"depth {value} is outside the model; depths run from 0, the first layer, to 1, the last"
        )
    return depth


def _layer(depth: Fraction, layers: int) -> int:
    return min(math.floor(depth * layers), layers - 1)


def _middle(layer: int, layers: int) -> float:
    return (2 * layer + 1) / (2 * layers)
