"""The plan of a model: the ordered visits of its layers. A value: hashable, comparable, composable."""

import math
from dataclasses import dataclass, replace
from operator import index as as_int
from typing import Any

from restack.errors import PlanError

MAX_VISITS = 2**16  # far past any model; keeps a typo such as 0x999999999 from filling memory
SCALE_FILTER_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.*-")


@dataclass(frozen=True, slots=True)
class Visit:
    """One run of a layer in the forward pass.

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
    scale: tuple[tuple[str, float], ...] = ()
    donor: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered visits of a model, and how many layers each donor has, so that it is always a checked one.

    `str(plan)` is its canonical text, which `restack.plan(text, plan.depths)` reads back; `p + q` runs p and then
    q on the same donors; in `p.then(q)`, q's layers are p's visits.

    Raises:
        PlanError: no visits; a layer, owner or donor that does not exist; a damp or scale that is not finite.
    """

    visits: tuple[Visit, ...]
    depths: tuple[int, ...]

    def __post_init__(self) -> None:
        depths = tuple(_integer(depth, "a depth") for depth in self.depths)
        if not depths or min(depths) < 1:
            raise PlanError(f"depths {depths} must give each donor at least 1 layer")
        visits = tuple(self.visits)
        if not visits:
            raise PlanError("a plan needs at least one visit")
        if len(visits) > MAX_VISITS:
            raise PlanError(f"{len(visits)} visits are past the limit of {MAX_VISITS}")
        checked = tuple(_checked(visit, number, len(visits), depths) for number, visit in enumerate(visits))
        object.__setattr__(self, "depths", depths)
        object.__setattr__(self, "visits", checked)

    @classmethod
    def of(cls, layers: Any, depth: int) -> "Plan":
        """The plain plan that visits these layers of a model with `depth` layers."""
        return cls(tuple(Visit(layer) for layer in layers), (depth,))

    @property
    def order(self) -> tuple[int, ...]:
        """The layer that each visit runs."""
        return tuple(visit.layer for visit in self.visits)

    @property
    def runs(self) -> tuple[range, ...]:
        """The order, cut into the longest runs of consecutive layers."""
        runs: list[range] = []
        for layer in self.order:
            if runs and layer == runs[-1].stop:
                runs[-1] = range(runs[-1].start, layer + 1)
            else:
                runs.append(range(layer, layer + 1))
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

    def __add__(self, other: "Plan") -> "Plan":
        if not isinstance(other, Plan):
            return NotImplemented
        if self.depths != other.depths:
            raise PlanError(
                f"plans over {self.depths} and {other.depths} layers cannot be joined; they must agree"
            )
        shifted = (
            visit if visit.kv is None else replace(visit, kv=visit.kv + len(self)) for visit in other.visits
        )
        return Plan(self.visits + tuple(shifted), self.depths)

    def then(self, other: "Plan") -> "Plan":
        """The plan that `other` makes of the model that this plan makes: other's layers are this plan's visits.

        Damps multiply. A visit whose layer reads another's keys and values here reads the nearest visit of that
        layer there: before it if the owner is below its reader here, after it if above.

        Raises:
            PlanError: `other` is not over one model of len(self) layers; it leaves out an owner that one of its
                visits needs; or both scale one visit.
        """
        if other.depths != (len(self),):
            raise PlanError(f"a plan over {other.depths} layers cannot follow one of {len(self)} visits")
        return Plan(
            tuple(_composed(self, other, number) for number in range(len(other))),
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
                return parse(text, tuple(depths))
        raise PlanError('a plan in JSON is {"plan": "0:8,4:12", "depths": [12]} and nothing else')


def _checked(visit: Visit, number: int, visits: int, depths: tuple[int, ...]) -> Visit:
    """The visit with plain values in their one canonical form."""
    where = f"visit {number}"
    donor = _integer(visit.donor, f"{where}: the donor")
    if not 0 <= donor < len(depths):
        raise PlanError(f"{where}: donor {donor} is past the plan's {len(depths)} (0..{len(depths) - 1})")
    layer = _integer(visit.layer, f"{where}: the layer")
    if not 0 <= layer < depths[donor]:
        raise PlanError(
            f"{where}: layer {layer} is past the model's {depths[donor]} layers (0..{depths[donor] - 1})"
        )
    kv = None if visit.kv is None else _integer(visit.kv, f"{where}: the owner")
    if kv is not None and not 0 <= kv < visits:
        raise PlanError(f"{where} reads visit {kv}, past the plan's {visits} visits (0..{visits - 1})")
    scale = []
    for name, factor in visit.scale:
        if not name or not SCALE_FILTER_CHARACTERS.issuperset(name):
            raise PlanError(f"{where}: {name!r} is no scale filter; write part of a tensor's name, or *")
        scale.append((str(name), _finite(factor, f"{where}: the scale of {name}")))
    return Visit(
        layer=layer,
        kv=None if kv == number else kv,
        sliding=bool(visit.sliding),
        damp=_finite(visit.damp, f"{where}: the damp"),
        scale=tuple(scale),
        donor=donor,
    )


def _integer(value: Any, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return as_int(value)
    except TypeError:
        raise PlanError(f"{what} must be a whole number, not {value!r}") from None


def _finite(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise PlanError(f"{what} must be a finite number, not {value!r}")
    return number + 0.0  # no negative zero: it would print as -0


def _composed(inner: Plan, outer: Plan, number: int) -> Visit:
    above = outer.visits[number]
    below = inner.visits[above.layer]
    if above.scale and below.scale:
        raise PlanError(f"visit {number} is scaled by both plans; scale it in one of them")
    kv = above.kv
    if kv is None and below.kv is not None:
        owned_below = below.kv < above.layer
        candidates = range(number - 1, -1, -1) if owned_below else range(number + 1, len(outer))
        kv = next((j for j in candidates if outer.visits[j].layer == below.kv), None)
        if kv is None:
            side = "before" if owned_below else "after"
            raise PlanError(
                f"visit {number} reads the keys and values of layer {below.kv}, which is not visited {side} it"
            )
    return Visit(
        layer=below.layer,
        kv=kv,
        sliding=above.sliding or below.sliding,
        damp=above.damp * below.damp,
        scale=above.scale or below.scale,
        donor=below.donor,
    )
