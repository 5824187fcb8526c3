"""KV maps by the names that papers gave them.

`pizza`, `sandwich` and `lasagna`, each `-bottom`, `-middle` or `-top` with the number of owners after a colon, are of
Wu et al., "A Systematic Study of Cross-Layer KV Sharing" (2410.14442): the place of the visits that keep their own keys
and values, and the place of the owner in each group that shares. `lckv-wN` (2405.10637) keeps N warm-up visits, half at
each end, and is sandwich-top with N + 1 owners; `claN` (2405.12981) shares in groups of N and is lasagna-bottom;
`yoco` (2405.05254) runs its lower half through a sliding window, and its upper half reads the first visit of it.
"""

import re

from restack.errors import PlanError
from restack.plans.kv_map import Entry

NAME = re.compile(
    r"(pizza|sandwich|lasagna)-(bottom|middle|top):([0-9]{1,6})|lckv-w([0-9]{1,6})|cla([0-9]{1,6})|yoco"
)
LOOKS_LIKE_ONE = re.compile(r"[a-z]+[a-z0-9]*(-[a-z0-9]+)?(:[0-9]*)?")
NAMES = "lckv-w2, cla2, yoco, or pizza|sandwich|lasagna-bottom|middle|top:OWNERS as in sandwich-middle:11"


def owners(name: str, visits: int) -> list[Entry]:
    """The (owner, sliding) pair of each of `visits` visits under a preset.

    Raises:
        PlanError: there is no such preset, or it does not fit this many visits.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise PlanError(
            f"{name!r} is neither a spec such as 0:8,4:12 nor a KV preset; the presets are {NAMES}"
        )
    shape, place, count, warmup, group = found.groups()
    if shape:
        return _grouped(_groups(name, shape, int(count), visits), place)
    if warmup:
        if int(warmup) % 2 or int(warmup) >= visits:
            raise PlanError(
                f"{name}: the warm-up visits stand half at each end of {visits}; write an even number below it"
            )
        return _grouped(_groups(name, "sandwich", int(warmup) + 1, visits), "top")
    if group:
        size = int(group)
        if not 1 <= size <= visits:
            raise PlanError(f"{name}: groups of {size} do not fit {visits} visits; write cla1 to cla{visits}")
        return _grouped(
            [range(start, min(start + size, visits)) for start in range(0, visits, size)], "bottom"
        )
    half = visits // 2
    return [(visit, True) for visit in range(half)] + [(half, False)] * (visits - half)


def _groups(name: str, shape: str, count: int, visits: int) -> list[range]:
    """`count` groups of consecutive visits; each group has one owner."""
    if not 1 <= count <= visits:
        raise PlanError(f"{name}: {count} owners do not fit {visits} visits; write 1 to {visits}")
    if shape == "lasagna":
        bounds = [group * visits // count for group in range(count + 1)]
        return [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]
    before = count - 1 if shape == "pizza" else count // 2
    after = visits - (count - 1 - before)
    alone = [range(visit, visit + 1) for visit in (*range(before), *range(after, visits))]
    return sorted([*alone, range(before, after)], key=lambda group: group.start)


def _grouped(groups: list[range], place: str) -> list[Entry]:
    pick = {"bottom": 0, "top": -1}
    owned = []
    for group in groups:
        owner = group[pick.get(place, (len(group) - 1) // 2)]
        owned += [(owner, False)] * len(group)
    return owned
