"""Plans side by side: where texts of several plans can read a layer's weights in one pass."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

REMEMBERED = 256  # sets of plans that were ordered


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What each visit of a model reads, and where it is to stop on the way.

    Attributes:
        reads: of each visit; visits that read the same can run in one pass.
        stops: visits before which it is to stop.
    """

    reads: tuple[Hashable, ...]
    stops: frozenset[int]


@lru_cache(REMEMBERED)
def route(reads: tuple[Hashable, ...], stops: frozenset[int]) -> Route:
    """The same object for the same visits and stops, as long as it is remembered: it is quick to look up."""
    return Route(reads, stops)


@dataclass(frozen=True, slots=True)
class Leg:
    """Some visits of several routes that read the same, one after the other.

    Attributes:
        starts: the number of the first of these visits, by route; the other routes wait.
        length: how many they are.
    """

    starts: Mapping[Route, int]
    length: int


@lru_cache(REMEMBERED)
def legs(routes: frozenset[Route]) -> tuple[Leg, ...]:
    """All visits of all routes, each route's in its order, in few passes: those of a common supersequence."""
    longest_first = sorted({each.reads for each in routes}, key=len, reverse=True)
    at = dict.fromkeys(routes, 0)
    found: list[Leg] = []
    for read in reduce(supersequence, longest_first):
        going = {each: at[each] for each in routes if each.reads[at[each] : at[each] + 1] == (read,)}
        if not going:
            continue
        is_to_stop = any(visit in each.stops for each, visit in going.items())
        if found and not is_to_stop and found[-1].starts.keys() == going.keys():
            found[-1] = Leg(found[-1].starts, found[-1].length + 1)
        else:
            found.append(Leg(going, 1))
        for each in going:
            at[each] += 1
    return tuple(found)


def supersequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """A shortest sequence that holds the items of both, each in their order, with others between."""
    # shortest[i][j]: how many items hold one[i:] and other[j:]
    shortest = [[len(other) - j for j in range(len(other) + 1)]]
    for i in range(len(one) - 1, -1, -1):
        below, row = shortest[-1], [len(one) - i]
        for j in range(len(other) - 1, -1, -1):
            row.append(1 + (below[j + 1] if one[i] == other[j] else min(below[j], row[-1])))
        shortest.append(row[::-1])
    shortest.reverse()
    result, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        is_both = one[i] == other[j]
        takes_one = is_both or shortest[i + 1][j] <= shortest[i][j + 1]
        result.append(one[i] if takes_one else other[j])
        i, j = i + takes_one, j + (is_both or not takes_one)
    return (*result, *one[i:], *other[j:])
