"""Blocks that run twice, as RYS writes them, and the paths of llm-circuit-finder.

The block (i, j) runs layers 0..j-1 and then i..n-1, so that i..j-1 run twice; (0,0) is the base. Several blocks are
ascending and disjoint. A path lists layers and inclusive ranges: 0..14,12,13,14,15..39.
"""

import re
from collections.abc import Sequence
from typing import Any

from restack.errors import PlanError
from restack.plans.pointing import error_at
from restack.plans.value import Plan

BLOCK = re.compile(r" *\( *([0-9]{1,9}) *, *([0-9]{1,9}) *\) *")
STEP = re.compile(r" *([0-9]{1,9})(?:\.\.([0-9]{1,9}))? *")


def read(blocks: Sequence[Any], depth: int) -> Plan:
    """The plan that runs each of these blocks (i, j) of a model with `depth` layers twice.

    Raises:
        PlanError: a block is empty (but for the single (0, 0)), past the model, or not after the one before.
    """
    layers: list[int] = []
    start, done = 0, 0  # where the next stretch begins; how far blocks have come
    pairs = [_pair(block) for block in blocks]
    if not pairs:
        raise PlanError("blocks is empty; write [(0, 0)] for the base, or blocks as in [(31, 34), (43, 45)]")
    if pairs == [(0, 0)]:
        return Plan.of(range(depth), depth)
    for i, j in pairs:
        if i > j:
            skip = f"0:{j},{i}:" if j else f"{i}:"
            raise PlanError(
                f"block ({i},{j}) ends before it starts; to skip layers {j}..{i - 1} write {skip}"
            )
        if i == j:
            raise PlanError(
                f"block ({i},{j}) is empty: the end is not included; write ({i},{j + 1}), or (0,0) for the base"
            )
        if j > depth:
            raise PlanError(
                f"block ({i},{j}) ends past the model's {depth} layers; write at most ({i},{depth})"
            )
        if i < done:
            raise PlanError(
                f"block ({i},{j}) begins before layer {done}, the end of the one before it; blocks ascend"
            )
        layers += range(start, j)
        start, done = i, j
    return Plan.of([*layers, *range(start, depth)], depth)


def parse(text: str, depth: int) -> Plan:
    """The plan of blocks written as (45,52) or (31,34);(43,45)."""
    blocks = []
    at = 0
    while True:
        found = BLOCK.match(text, at)
        if not found:
            raise error_at(text, at, at + 1, "not a block", "write (45,52), or (31,34);(43,45) for two")
        blocks.append((int(found[1]), int(found[2])))
        at = found.end()
        if at == len(text):
            return read(blocks, depth)
        if text[at] != ";":
            raise error_at(text, at, at + 1, "not part of a list of blocks", "put ; between blocks")
        at += 1


def write(plan: Plan) -> str:
    """The blocks that a plan runs twice: (45,52).

    Raises:
        PlanError: the plan is not the base with disjoint blocks run twice.
    """
    blocks = []
    for before, layer in zip(plan.order, plan.order[1:], strict=False):
        if layer <= before:
            blocks.append((layer, before + 1))
    blocks = blocks or [(0, 0)]
    depth = plan.depths[0]
    try:
        same = read(blocks, depth) == plan
    except PlanError:
        same = False
    if not same:
        raise PlanError("blocks only say which layers run twice; write this plan as a spec")
    return ";".join(f"({i},{j})" for i, j in blocks)


def parse_path(text: str, depth: int) -> Plan:
    """The plan of a path: layers and inclusive ranges.

    Raises:
        PlanError: the text is no path, a range runs downwards, or a layer is past the model.
    """
    layers: list[int] = []
    at = 0
    while True:
        found = STEP.match(text, at)
        if not found:
            raise error_at(
                text, at, at + 1, "not a layer or an inclusive range", "write a path as in 0..14,12,13,14..39"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last >= depth or first >= depth:
            wrong = f"layer {max(first, last)} is past the model's {depth} layers (0..{depth - 1})"
            raise error_at(
                text, *found.span(), wrong, f"the last layer is {depth - 1}, ranges include their end"
            )
        if first > last:
            raise error_at(text, *found.span(), f"{first}..{last} runs downwards", f"write {last}..{first}")
        layers += range(first, last + 1)
        at = found.end()
        if at == len(text):
            return Plan.of(layers, depth)
        if text[at] != ",":
            raise error_at(text, at, at + 1, "not part of a path", "put a comma between its parts")
        at += 1


def write_path(plan: Plan) -> str:
    """The path of a plan that only orders the layers of one model.

    Raises:
        PlanError: the plan does more than that.
    """
    if not plan.is_plain:
        raise PlanError("a path only orders the layers of one model; write this plan as a spec")
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in plan.runs)


def _pair(block: Any) -> tuple[int, int]:
    match block:
        case [int(i), int(j)] if not isinstance(i, bool) and not isinstance(j, bool) and i >= 0 and j >= 0:
            return i, j
    raise PlanError(f"{block!r} is no block; write (i, j) with whole numbers from 0, as in (45, 52)")
