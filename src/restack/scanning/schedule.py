"""In which order plans are run, and where each goes on from another, so that beginnings are run once.

The plans form a trie by their visits. It is walked depth first, the largest branch of a node last, so that
few hidden states have to be kept at a time: of all blocks of a model, those at one or two visits.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from restack.plans import Plan


@dataclass(frozen=True, slots=True)
class Step:
    """A plan in its turn.

    Attributes:
        number: which of the plans.
        start: the visit that it goes on from; 0: it is run from the tokens.
        saves: visits, past `start`, whose entering hidden states later plans go on from.
        drops: visits from which no later plan goes on.
    """

    number: int
    start: int
    saves: tuple[int, ...]
    drops: tuple[int, ...]


def cuts(plan: Plan) -> frozenset[int]:
    """The visits that a plan can be gone on from: no keys and values are read across them."""
    spanned: set[int] = set()
    for number, owner in enumerate(plan.owners):
        spanned.update(range(min(number, owner) + 1, max(number, owner) + 1))
    return frozenset(range(1, len(plan))) - spanned


def schedule(plans: Sequence[Plan], entries: Sequence[frozenset[int]]) -> list[Step]:
    """The plans in an order in which each goes on from the longest beginning that one before it has run.

    Args:
        plans: over the layers of one model.
        entries: of each plan, the visits that it can go on from; `cuts` says which.
    """
    order = _depth_first(plans)
    starts = [0]
    for before, number in pairwise(order):
        alike = _common(plans[before], plans[number])
        starts.append(max((visit for visit in entries[number] if visit <= alike), default=0))
    saves: dict[int, set[int]] = defaultdict(set)
    drops: dict[int, list[int]] = defaultdict(list)
    open_turns: list[int] = []  # turns whose hidden states can still be gone on from, by rising start
    last_use: dict[tuple[int, int], int] = {}  # (turn that saves, visit): the last turn that goes on from it
    for turn, start in enumerate(starts):
        while open_turns and starts[open_turns[-1]] >= start:
            open_turns.pop()
        if start:
            saver = open_turns[-1]
            saves[saver].add(start)
            last_use[saver, start] = turn
        open_turns.append(turn)
    for (_, visit), turn in last_use.items():
        drops[turn].append(visit)
    return [
        Step(number, starts[turn], tuple(sorted(saves[turn])), tuple(drops[turn]))
        for turn, number in enumerate(order)
    ]


def most_kept(steps: Iterable[Step]) -> int:
    """At how many visits hidden states are kept at once, at the most."""
    kept = most = 0
    for step in steps:
        most = max(most, kept + len(step.saves))
        kept += len(step.saves) - len(step.drops)
    return most


def _depth_first(plans: Sequence[Plan]) -> list[int]:
    """The numbers of the plans, those with a common beginning together, small groups of these first."""
    order: list[int] = []
    groups = [(list(range(len(plans))), 0)]
    while groups:
        group, depth = groups.pop()
        branches: dict[object, list[int]] = {}
        for number in group:
            visits = plans[number].visits
            if depth == len(visits) or len(group) == 1:
                order.append(number)
            else:
                branches.setdefault(visits[depth], []).append(number)
        largest_first = sorted(branches.values(), key=len, reverse=True)
        groups += [(branch, depth + 1) for branch in largest_first]
    return order


def _common(one: Plan, other: Plan) -> int:
    """How many visits two plans begin with alike."""
    pairs = zip(one.visits, other.visits, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
