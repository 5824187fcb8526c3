"""KV maps, as LCKV's `layer_types` writes them: whose keys and values each visit reads.

    map := entry ("_" entry)*          entry := owner ["s"] ["x" K]

Entry k names the visit whose keys and values visit k reads; `s`: through a sliding window; `x`: repeated K
times (a shorthand of ours: configs are written without it). Source: `LayerTypeParser` of whyNLP/LCKV.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from restack.errors import PlanError
from restack.plans.pointing import counted, error_at, number_at
from restack.plans.value import Plan

ENTRY = re.compile(r"([0-9]+)(s?)(?:x([0-9]+))?")
REMEDY = "write a map as in 0_1_1_3s, or 0_20x20_21"

Entry = tuple[int, bool]  # (owner, sliding)


def read(text: str, plan: Plan, start: int = 0) -> Plan:
    """`plan` with the owners that the map in `text[start:]` gives its visits, in place of its own.

    Raises:
        PlanError: the text is no map, is not as long as the plan, or names a visit past it.
    """
    visits = len(plan)
    entries: list[Entry] = []
    at = start
    while True:
        found = ENTRY.match(text, at)
        if not found:
            is_name = text[at : at + 1].isalpha() and not entries
            remedy = f"{REMEDY}; a map by its name goes into --kv (kv= in Python)" if is_name else REMEDY
            raise error_at(text, at, at + 1, "a visit's number should stand here", remedy)
        owner = number_at(text, *found.span(1))
        times = number_at(text, *found.span(3)) if found[3] else 1
        if owner >= visits:
            wrong = f"owner {owner} is past the plan's {counted(visits, 'visit')}"
            raise error_at(text, *found.span(1), wrong, f"name one of 0 to {visits - 1}")
        if times < 1:
            raise error_at(text, *found.span(3), "0 times is no repeat", "write x1 or more, or leave it out")
        if len(entries) + times > visits:
            wrong = f"the map has more entries than the plan's {counted(visits, 'visit')}"
            raise error_at(text, at, found.end(), wrong, "write one entry a visit")
        entries += [(owner, bool(found[2]))] * times
        at = found.end()
        if at == len(text):
            break
        if text[at] != "_":
            raise error_at(text, at, at + 1, "not part of a KV map", REMEDY)
        at += 1
    if len(entries) < visits:
        wrong = f"the map ends after {len(entries)} of the plan's {counted(visits, 'visit')}"
        raise error_at(text, at, at + 1, wrong, "write one entry a visit")
    return assign(plan, entries)


def assign(plan: Plan, entries: Sequence[Entry]) -> Plan:
    """`plan` with these (owner, sliding) pairs, one a visit, in place of its own."""
    if len(entries) != len(plan):
        raise PlanError(f"{len(entries)} owners for the plan's {len(plan)} visits; give one a visit")
    return Plan(
        tuple(
            replace(visit, kv=owner, sliding=sliding)
            for visit, (owner, sliding) in zip(plan.visits, entries, strict=True)
        ),
        plan.depths,
    )


def write(plan: Plan, *, abbreviate: bool = True) -> str:
    """The map of a plan; unabbreviated, it is what LCKV configs hold in `layer_types`."""
    entries = [f"{owner}{'s' * visit.sliding}" for owner, visit in zip(plan.owners, plan.visits, strict=True)]
    if not abbreviate:
        return "_".join(entries)
    runs = [(entry, len(list(group))) for entry, group in groupby(entries)]
    return "_".join(entry if times == 1 else f"{entry}x{times}" for entry, times in runs)


def is_plain(plan: Plan) -> bool:
    """Whether every visit reads its own keys and values, all of them."""
    return not any(visit.sliding or visit.kv is not None for visit in plan.visits)
