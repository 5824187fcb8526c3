"""Paths, as llm-circuit-finder writes them: layers and inclusive ranges, 0..14,12,13,14,15..39."""

import re
from collections.abc import Iterator

from restack.errors import PlanError
from restack.plans.pointing import error_at, extent, number_at
from restack.plans.value import Plan

STEP = re.compile(r" *(([0-9]+)(?:\.\.([0-9]+))?) *")


def parse(text: str, depth: int) -> Plan:
    """The plan of a path: layers and inclusive ranges.

    Raises:
        PlanError: the text is no path, a range runs downwards, or a layer is past the model.
    """
    return Plan.of(_layers(text, depth), depth)


def write(plan: Plan) -> str:
    """The path of a plan that only orders the layers of one model.

    Raises:
        PlanError: the plan does more than that.
    """
    if not plan.is_plain:
        raise PlanError("a path only orders the layers of one model; write this plan as a spec")
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in plan.runs)


def _layers(text: str, depth: int) -> Iterator[int]:
    """The layers of a path, one by one: a plan stops at its limit."""
    at = 0
    while True:
        found = STEP.match(text, at)
        if not found:
            wrong = "not a layer or an inclusive range"
            raise error_at(text, at, at + 1, wrong, "write a path as in 0..14,12,13,14..39")
        first = number_at(text, *found.span(2))
        last = number_at(text, *found.span(3)) if found[3] else first
        for layer, group in ((first, 2), (last, 3)):
            if layer >= depth:
                remedy = f"write at most {depth - 1}: a range includes its end"
                raise error_at(text, *found.span(group), f"layer {layer} is past {extent(depth)}", remedy)
        if first > last:
            wrong = f"{first}..{last} runs downwards"
            raise error_at(text, *found.span(1), wrong, f"write {last}..{first}, or the layers one by one")
        yield from range(first, last + 1)
        at = found.end()
        if at == len(text):
            return
        if text[at] != ",":
            raise error_at(text, at, at + 1, "not part of a path", "put a comma between its parts")
        at += 1
