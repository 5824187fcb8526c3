"""KV maps by the names that papers gave them.

`pizza`, `sandwich` and `lasagna`, each `-bottom`, `-middle` or `-top` with the number of owners after a
colon, are of Wu et al., "A Systematic Study of Cross-Layer KV Sharing" (2410.14442): the place of the visits
that keep their own keys and values, and the place of the owner in each group that shares.

- `lckv-wN` (2405.10637) keeps N warm-up visits, half at each end: sandwich-top with N + 1 owners.
- `claN` (2405.12981) shares in groups of N, the last one perhaps smaller: lasagna-bottom where N divides the
visits.
- `yoco` (2405.05254) runs its lower half through a sliding window; its upper half reads the first visit of
itself.
- `mix-attention` (2409.15012, the pairs of whyNLP/LCKV's README) sees all in every sixth visit, two of which
share; between them, twos and threes share a sliding window.
"""

import re
from itertools import pairwise

from restack.errors import PlanError
from restack.plans.kv_map import Entry
from restack.plans.pointing import counted, error_at

NAME = re.compile(
    r"(pizza|sandwich|lasagna)-(bottom|middle|top):([0-9]{1,6})|lckv-w([0-9]{1,6})|cla([0-9]{1,6})|yoco|mix-attention"
)
NAMES = (
    "lckv-w2, cla2, yoco, mix-attention, or pizza|sandwich|lasagna-bottom|middle|top:OWNERS as in "
    "sandwich-middle:11"
)


def owners(name: str, visits: int) -> list[Entry]:
    """The (owner, sliding) pair of each of `visits` visits under a preset.

    Raises:
        PlanError: there is no such preset, or it does not fit this many visits.
    """
    found = NAME.fullmatch(name)
    if not found:
        wrong = "neither a spec such as 0:8,4:12 nor a KV preset"
        raise error_at(name, 0, len(name), wrong, f"the presets are {NAMES}")
    shape, place, count, warmup, group = found.groups()
    if shape:
        return _grouped(_groups(name, shape, int(count), visits), place)
    if warmup:
        if int(warmup) % 2 or int(warmup) >= visits:
            wrong = f"{name}: the warm-up visits stand half at each end of {visits}"
            raise PlanError(f"{wrong}; write an even number below {visits}")
        return _grouped(_groups(name, "sandwich", int(warmup) + 1, visits), "top")
    if group:
        size = int(group)
        if not 1 <= size <= visits:
            unfit = f"{name}: groups of {size} do not fit {counted(visits, 'visit')}"
            raise PlanError(f"{unfit}; write cla1 to cla{visits}")
        starts = range(0, visits, size)
        return _grouped([range(start, min(start + size, visits)) for start in starts], "bottom")
    if name == "mix-attention":
        return [_mixed(visit, visits) for visit in range(visits)]
    half = visits // 2
    return [(visit, True) for visit in range(half)] + [(half, False)] * (visits - half)


def _mixed(visit: int, visits: int) -> Entry:
    """The owner of a visit under mix-attention, and whether it slides."""
    turn, place = divmod(visit, 6)
    if place == 0:
        return visit - 6 * (turn % 2), False
    is_left_over = visits == visit + 1 and place == 3  # alone in its group: it joins the one before
    return visit - place + (1 if place < 3 or is_left_over else 3), True


def _groups(name: str, shape: str, count: int, visits: int) -> list[range]:
    """`count` groups of consecutive visits; each group has one owner."""
    if not 1 <= count <= visits:
        unfit = f"{name}: {counted(count, 'owner')} do not fit {counted(visits, 'visit')}"
        raise PlanError(f"{unfit}; write 1 to {visits}")
    if shape == "lasagna":
        return [range(*pair) for pair in pairwise(group * visits // count for group in range(count + 1))]
    before = count - 1 if shape == "pizza" else count // 2
    after = visits - (count - 1 - before)
    below = [range(visit, visit + 1) for visit in range(before)]
    above = [range(visit, visit + 1) for visit in range(after, visits)]
    return [*below, range(before, after), *above]


def _grouped(groups: list[range], place: str) -> list[Entry]:
    """Each visit reads the one at the bottom, in the middle or at the top of its group."""
    owned: list[Entry] = []
    for group in groups:
        owner = group[{"bottom": 0, "middle": (len(group) - 1) // 2, "top": -1}[place]]
        owned += [(owner, False)] * len(group)
    return owned
