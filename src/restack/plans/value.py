"""The plan of a model: the ordered visits of its layers. A value: hashable, comparable, composable."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real
from operator import index as as_int
from typing import Any

from restack.errors import PlanError
from restack.plans.pointing import MAX_DIGITS, counted, extent, shown

MAX_VISITS = 2**14  # and layers: far past any model; keeps a typo such as 0x99999999 from filling memory
MAX_FILTERS = 16  # of one visit
MAX_FILTER_LENGTH = 100
SCALE_FILTER_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.*-")

Scale = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Visit:
    """One run of a layer in the forward pass. A `Plan` checks its visits; a lone one is not checked.

    Attributes:
        layer: which layer's weights run.
        kv: the visit whose keys and values this one reads; None: its own.
        sliding: reads them through a sliding window.
        damp: the layer's whole delta is scaled: h + damp * (layer(h) - h).
        scale: mergekit's per-tensor scale filters; the first whose filter is part of a tensor's name ("*": of
            every name) multiplies that tensor: (("o_proj", 0.7),).
        donor: which of the plan's models lends the layer.
    """

    layer: int
    kv: int | None = None
    sliding: bool = False
    damp: float = 1.0
    scale: Scale = ()
    donor: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The ordered visits of a model, and how many layers each donor has, so that it is always a checked one.

    `str(plan)` is its canonical text, which `restack.plan(text, plan.depths)` reads back; `p + q` runs p and
    then q on the same donors; in `p.then(q)`, q's layers are p's visits.

    Plans that mean the same are equal: a visit that names itself as owner reads its own keys and values, and
    scale filters that change nothing are dropped.

    Raises:
        PlanError: no visits; a layer, owner or donor that does not exist; a damp or scale that is not finite.
    """

    visits: tuple[Visit, ...]
    depths: tuple[int, ...]

    def __post_init__(self) -> None:
        depths = checked_depths(self.depths)
        if not isinstance(self.visits, Iterable):
            raise PlanError(f"a plan's visits must be a tuple of Visit, not {shown(self.visits)}")
        visits = tuple(islice(self.visits, MAX_VISITS + 1))
        if not visits:
            raise PlanError("a plan needs at least one visit")
        if len(visits) > MAX_VISITS:
            raise PlanError(f"the plan has more than {MAX_VISITS} visits, the limit; repeat less")
        checked = tuple(_checked(visit, number, len(visits), depths) for number, visit in enumerate(visits))
        object.__setattr__(self, "depths", depths)
        object.__setattr__(self, "visits", checked)

    @classmethod
    def of(cls, layers: Iterable[int], depth: int) -> "Plan":
        """The plain plan that visits these layers of a model with `depth` layers."""
        return cls(map(Visit, layers), (depth,))  # type: ignore[arg-type]  # becomes a tuple

    @property
    def order(self) -> tuple[int, ...]:
        """The layer that each visit runs."""
        return tuple(visit.layer for visit in self.visits)

    @property
    def runs(self) -> tuple[range, ...]:
        """The order, cut into the longest runs of consecutive layers of one donor."""
        runs: list[range] = []
        donor = None
        for visit in self.visits:
            if visit.donor == donor and visit.layer == runs[-1].stop:
                runs[-1] = range(runs[-1].start, visit.layer + 1)
            else:
                runs.append(range(visit.layer, visit.layer + 1))
            donor = visit.donor
        return tuple(runs)

    @property
    def owners(self) -> tuple[int, ...]:
        """The visit whose keys and values each visit reads; its own number where it reads its own."""
        return tuple(number if visit.kv is None else visit.kv for number, visit in enumerate(self.visits))

    @property
    def is_identity(self) -> bool:
        """Whether the plan runs one model exactly as it is."""
        return len(self.depths) == 1 and self.visits == tuple(map(Visit, range(self.depths[0])))

    @property
    def is_plain(self) -> bool:
        """Whether the plan only orders the layers of one model: nothing damped, scaled or shared."""
        return len(self.depths) == 1 and self.visits == tuple(map(Visit, self.order))

    def __len__(self) -> int:
        return len(self.visits)

    def __str__(self) -> str:
        from restack.plans.spec import write  # the language reads plans, so it cannot be above them

        return write(self)

    def __repr__(self) -> str:
        return f"restack.plan({str(self)!r}, {self.depths})"

    def __add__(self, other: "Plan") -> "Plan":
        if not isinstance(other, Plan):
            return NotImplemented
        if self.depths != other.depths:
            ours, theirs = layers_of(self.depths), layers_of(other.depths)
            raise PlanError(f"a plan over {ours} and one over {theirs} cannot be joined; they must agree")
        shifted = (
            visit if visit.kv is None else replace(visit, kv=visit.kv + len(self)) for visit in other.visits
        )
        return Plan((*self.visits, *shifted), self.depths)

    def then(self, other: "Plan") -> "Plan":
        """The plan that `other` makes of this plan's model: other's layers are this plan's visits.

        Damps multiply. A visit whose layer reads another's keys and values here reads the nearest visit of
        that layer there: before it if the owner is below its reader here, after it if above.

        Raises:
            PlanError: `other` is not over one model of len(self) layers; it leaves out an owner that one of
                its visits needs; or both scale one visit.
        """
        if not isinstance(other, Plan) or other.depths != (len(self),):
            theirs = f"a plan over {layers_of(other.depths)}" if isinstance(other, Plan) else shown(other)
            wrong = f"{theirs} cannot follow a plan of {counted(len(self), 'visit')}"
            raise PlanError(f"{wrong}; give a plan over as many layers")
        places: dict[int, list[int]] = defaultdict(list)  # where `other` visits each of its layers
        for number, visit in enumerate(other.visits):
            places[visit.layer].append(number)
        visits = [
            _composed(self.visits[above.layer], above, number, places)
            for number, above in enumerate(other.visits)
        ]
        return Plan(tuple(visits), self.depths)

    def tail(self, start: int) -> "Plan":
        """The plan of the visits from `start` on, which read the same keys and values as here.

        Raises:
            PlanError: there is no such visit; or one from there on reads those of one before, or is read.
        """
        if not 0 <= start < len(self):
            raise PlanError(f"the plan has no visit {start} (0..{len(self) - 1}); begin at one of these")
        for number, owner in enumerate(self.owners):
            if (number < start) != (owner < start):
                raise PlanError(
                    f"visit {number} reads the keys and values of visit {owner}, so the plan cannot be cut "
                    f"between them; begin at another visit than {start}"
                )
        visits = self.visits[start:]
        return Plan(
            tuple(v if v.kv is None else replace(v, kv=v.kv - start) for v in visits),
            self.depths,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `Plan.from_json` reads: the canonical text and the depths."""
        return {"plan": str(self), "depths": list(self.depths)}

    @classmethod
    def from_json(cls, value: Any) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            PlanError: it is not such an object, or the plan in it is not valid.
        """
        from restack.plans.spec import parse

        match value:
            case {"plan": str(text), "depths": [*depths]} if len(value) == 2:
                return parse(text, depths)
        raise PlanError('a plan in JSON is {"plan": "0:8,4:12", "depths": [12]} and nothing else')


def checked_depths(depths: Any) -> tuple[int, ...]:
    """The layer counts of a plan's donors as a tuple of ints.

    Raises:
        PlanError: there are none, or one is not a whole number from 1 to `MAX_VISITS`.
    """
    if not isinstance(depths, Sequence) or isinstance(depths, str):
        raise PlanError(f"depths must list the layer count of each donor, as in (32,), not {shown(depths)}")
    if not depths:
        raise PlanError("there is no layer count; give that of each donor, as in (32,)")
    counts = tuple(whole(depth, "a layer count") for depth in depths)
    for count in counts:
        if not 1 <= count <= MAX_VISITS:
            raise PlanError(f"{count} is no layer count; give a whole number from 1 to {MAX_VISITS}")
    return counts


def whole(value: Any, what: str) -> int:
    """The value as an int; `what` names it in the error.

    Raises:
        PlanError: it is not a whole number (a bool is none), or too large to be of use here.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = as_int(value)
    except TypeError:
        raise PlanError(f"{what} must be a whole number, not {shown(value)}") from None
    if abs(number) >= 10**MAX_DIGITS:
        raise PlanError(f"{what} has too many digits; write at most {MAX_DIGITS}")
    return number


def is_filter(name: str) -> bool:
    """Whether the text can be a scale filter."""
    return 0 < len(name) <= MAX_FILTER_LENGTH and SCALE_FILTER_CHARACTERS.issuperset(name)


def layers_of(depths: tuple[int, ...]) -> str:
    """How errors name layer counts: `32 layers`, or `80 + 80 layers` of two donors."""
    return counted(depths[0], "layer") if len(depths) == 1 else f"{' + '.join(map(str, depths))} layers"


def _checked(visit: Any, number: int, visits: int, depths: tuple[int, ...]) -> Visit:
    """The visit with plain values in their one canonical form."""
    where = f"visit {number}"
    if not isinstance(visit, Visit):
        raise PlanError(f"{where} is {shown(visit)}; write Visit(layer), or read a plan with restack.plan")
    donor = whole(visit.donor, f"{where}: the donor")
    if not 0 <= donor < len(depths):
        raise PlanError(f"{where}: donor {donor} is past the plan's {len(depths)} (0..{len(depths) - 1})")
    layer = whole(visit.layer, f"{where}: the layer")
    if not 0 <= layer < depths[donor]:
        raise PlanError(f"{where}: layer {layer} is past {extent(depths[donor])}")
    kv = None if visit.kv is None else whole(visit.kv, f"{where}: the owner")
    if kv is not None and not 0 <= kv < visits:
        raise PlanError(f"{where} reads visit {kv}, past the plan's {visits} visits (0..{visits - 1})")
    if not isinstance(visit.sliding, bool):
        raise PlanError(f"{where}: sliding must be True or False, not {shown(visit.sliding)}")
    return Visit(
        layer=layer,
        kv=None if kv == number else kv,
        sliding=visit.sliding,
        damp=_finite(visit.damp, f"{where}: the damp"),
        scale=_checked_scale(visit.scale, where) if visit.scale != () else (),
        donor=donor,
    )


def _checked_scale(scale: Any, where: str) -> Scale:
    """The filters in force: none after "*", which every name passes, and no last ones that multiply by 1."""
    if not isinstance(scale, list | tuple):
        raise PlanError(f'{where}: scale must be as in (("o_proj", 0.7),), not {shown(scale)}')
    if len(scale) > MAX_FILTERS:
        raise PlanError(f"{where} has {len(scale)} scale filters; write at most {MAX_FILTERS}")
    filters: list[tuple[str, float]] = []
    for entry in scale:
        match entry:
            case [str(name), factor] if is_filter(name):
                filters.append((str(name), _finite(factor, f"{where}: the scale of {name}")))
            case _:
                raise PlanError(
                    f"{where}: {shown(entry)} is no scale filter; write part of a tensor's name, or *, "
                    'and a factor, as in ("o_proj", 0.7)'
                )
    everything = next((number for number, (name, _) in enumerate(filters, 1) if name == "*"), len(filters))
    del filters[everything:]
    while filters and filters[-1][1] == 1:
        filters.pop()
    return tuple(filters)


def _finite(value: Any, what: str) -> float:
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise PlanError(f"{what} must be a finite number, not {shown(value)}")
    return number + 0.0  # no negative zero: it would print as -0


def _composed(below: Visit, above: Visit, number: int, places: dict[int, list[int]]) -> Visit:
    """Visit `number` of p.then(q): `above` in q, `below` in p; `places` has q's visits of each layer."""
    if above.scale and below.scale:
        raise PlanError(f"visit {number} is scaled by both plans; scale it in one of them")
    kv = above.kv
    if kv is None and below.kv is not None:
        candidates = places.get(below.kv, [])
        nearest = bisect_left(candidates, number) - (below.kv < above.layer)
        if not 0 <= nearest < len(candidates):
            side = "before" if below.kv < above.layer else "after"
            wrong = f"visit {number} reads the keys and values of layer {below.kv}, not visited {side} it"
            raise PlanError(f"{wrong}; visit that layer too, or leave out layer {above.layer}")
        kv = candidates[nearest]
    return Visit(
        layer=below.layer,
        kv=kv,
        sliding=above.sliding or below.sliding,
        damp=above.damp * below.damp,
        scale=above.scale or below.scale,
        donor=below.donor,
    )
