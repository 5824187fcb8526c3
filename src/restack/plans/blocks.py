"""Blocks that run twice, as RYS writes them.

The block (i, j) runs layers 0..j-1 and then i..n-1, so that i..j-1 run twice; (0,0) is the base. Several
blocks are ascending and disjoint.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from restack.errors import PlanError
from restack.plans.pointing import error_at, extent, number_at, shown
from restack.plans.value import Plan, whole

BLOCK = re.compile(r" *(\( *([0-9]+) *, *([0-9]+) *\)) *")

Block = tuple[int, int]


def read(blocks: Sequence[Any], depth: int) -> Plan:
    """The plan that runs each of these blocks (i, j) of a model with `depth` layers twice.

    Raises:
        PlanError: a block is empty (but for the single (0, 0)), past the model, or not after the one before.
    """
    pairs = [_pair(block) for block in blocks]
    if not pairs:
        raise PlanError("blocks is empty; write [(0, 0)] for the base, or blocks as in [(31, 34), (43, 45)]")
    if found := _first_wrong(pairs, depth):
        _, wrong, remedy = found
        raise PlanError(f"{wrong}; {remedy}")
    return _plan(pairs, depth)


def parse(text: str, depth: int) -> Plan:
    """The plan of blocks written as (45,52) or (31,34);(43,45).

    Raises:
        PlanError: as `read`, or the text is no list of blocks; the message points at the place.
    """
    pairs: list[Block] = []
    spans = []
    at = 0
    while True:
        found = BLOCK.match(text, at)
        if not found:
            raise error_at(text, at, at + 1, "not a block", _alone(pairs, depth))
        pairs.append((number_at(text, *found.span(2)), number_at(text, *found.span(3))))
        spans.append(found.span(1))
        at = found.end()
        if at == len(text) or len(pairs) > depth:  # so many cannot be disjoint
            break
        if text[at] != ";":
            raise error_at(text, at, at + 1, "not part of a list of blocks", _alone(pairs, depth))
        at += 1
    if wrong_one := _first_wrong(pairs, depth):
        number, wrong, remedy = wrong_one
        raise error_at(text, *spans[number], wrong, remedy)
    return _plan(pairs, depth)


def write(plan: Plan) -> str:
    """The blocks that a plan runs twice: (45,52).

    Raises:
        PlanError: the plan is not the base with disjoint blocks run twice.
    """
    depth = plan.depths[0]
    again = [(layer, before + 1) for before, layer in pairwise(plan.order) if layer <= before]
    pairs = again or [(0, 0)]
    if _first_wrong(pairs, depth) or _plan(pairs, depth) != plan:
        raise PlanError("blocks only say which layers run twice; write this plan as a spec")
    return ";".join(f"({i},{j})" for i, j in pairs)


def _alone(pairs: Sequence[Block], depth: int) -> str:
    """What to write where something else follows these blocks."""
    if not pairs or _first_wrong(pairs, depth):
        return "write (45,52), or (31,34);(43,45) for two"
    return (
        f"put ; between blocks; for more than blocks write a spec, which says this as {_plan(pairs, depth)}"
    )


def _pair(block: Any) -> Block:
    match block:
        case [i, j]:
            pair = whole(i, "the start of a block"), whole(j, "the end of a block")
            if min(pair) >= 0:
                return pair
    raise PlanError(f"{shown(block)} is no block; write (i, j) with whole numbers from 0, as in (45, 52)")


def _first_wrong(pairs: Sequence[Block], depth: int) -> tuple[int, str, str] | None:
    """The number of the first block that cannot be, what is wrong with it, and the remedy."""
    if pairs == [(0, 0)]:
        return None
    done = 0
    for number, (i, j) in enumerate(pairs):
        block = f"block ({i},{j})"
        if max(i, j) > depth:
            return number, f"{block} is past {extent(depth)}", f"write an end of at most {depth}"
        if i > j:
            kept = [text for text, wanted in ((f"0:{j}", j > 0), (f"{i}:", i < depth)) if wanted]
            skip = f"to skip layers {j}..{i - 1} write {','.join(kept)}" if kept else f"write ({j},{i})"
            return number, f"{block} ends before it starts", skip
        if i == j:
            remedy = f"write ({i},{j + 1})" if j < depth else f"write ({i - 1},{j})"
            return number, f"{block} is empty: the end is not included", f"{remedy}, or (0,0) for the base"
        if i < done:
            wrong = f"{block} begins before layer {done}, the end of the one before it"
            return number, wrong, "write blocks in order, none within another"
        done = j
    return None


def _plan(pairs: Sequence[Block], depth: int) -> Plan:
    layers: list[int] = []
    start = 0
    for i, j in pairs:
        layers += range(start, j)
        start = i
    return Plan.of([*layers, *range(start, depth)], depth)
