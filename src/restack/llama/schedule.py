"""What a plan asks of the house model: its steps, which of them are iterated, and the cache slots."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from restack.plans import Plan


@dataclass(frozen=True, slots=True)
class Reading:
    """What a step sees of the keys and values that it reads."""

    slot: int  # the first cache slot of the kind it reads from, full or of a window: masks are sized by it
    sliding: bool  # through the sliding window
    strictly_past: bool  # not the keys and values of the token itself

    @property
    def kind(self) -> str:
        """The name of the mask that shows this."""
        return f"{self.slot}{'s' * self.sliding}{'p' * self.strictly_past}"


@dataclass(frozen=True, slots=True)
class Step:
    """One visit, as the forward pass runs it."""

    number: int
    layer: int
    owner: int  # the step whose keys and values it reads
    source: int  # the cache slot of that step
    slot: int | None  # of the cache, for its own keys and values; None: nobody reads them, it computes none
    reading: Reading
    damp: float
    is_read_from_below: bool  # by a step that runs before it, in another pass
    is_read_from_above: bool
    last_of: tuple[int, ...]  # steps whose keys and values nobody reads after this one

    @property
    def reads_ahead(self) -> bool:
        """Whether what it reads is computed by a step above it: then it reads what an earlier pass left."""
        return self.owner > self.number


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive steps that run once; or, if some read ahead, again and again until they agree."""

    steps: tuple[Step, ...]
    is_iterated: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps, in order, and the kinds of the cache slots."""

    groups: tuple[Group, ...]
    slots: tuple[bool, ...]  # of each: whether all that read it slide, so that it keeps a window alone
    readings: dict[str, Reading]  # the different masks that the steps need, by name

    @property
    def steps(self) -> Iterator[Step]:
        """All steps in order."""
        return (step for group in self.groups for step in group.steps)

    @property
    def layers_with_kv(self) -> frozenset[int]:
        """The layers that compute keys and values in some visit."""
        return frozenset(step.layer for step in self.steps if step.slot is not None)


@lru_cache(maxsize=256)
def schedule(plan: Plan, force_nodiag: bool = False) -> Schedule:
    """The schedule of a plan over one model.

    Args:
        plan: over one donor.
        force_nodiag: no step sees its own token; LCKV's setting of this name.
    """
    owners = plan.owners
    slides: dict[int, bool] = {}  # of each owner that is read: whether all its readers slide
    for visit, owner in zip(plan.visits, owners, strict=True):
        if visit.damp != 0:  # or it reads nothing
            slides[owner] = visit.sliding and slides.get(owner, True)
    read = sorted(slides)
    readers: dict[int, list[int]] = defaultdict(list)
    for number, (visit, owner) in enumerate(zip(plan.visits, owners, strict=True)):
        if visit.damp != 0:
            readers[owner].append(number)
    slot_of = {owner: slot for slot, owner in enumerate(read)}
    like = {slides[owner]: slot_of[owner] for owner in reversed(read)}  # the first slot of each kind
    steps = tuple(
        Step(
            number=number,
            layer=visit.layer,
            owner=owner,
            source=slot_of.get(owner, 0),
            slot=slot_of.get(number),
            reading=Reading(
                like.get(slides.get(owner, False), 0), visit.sliding, force_nodiag or owner > number
            ),
            damp=visit.damp,
            is_read_from_below=any(reader < number for reader in readers.get(number, ())),
            is_read_from_above=any(reader > number for reader in readers.get(number, ())),
            last_of=tuple(last for last, by in readers.items() if last < number == max(by)),
        )
        for number, (visit, owner) in enumerate(zip(plan.visits, owners, strict=True))
    )
    readings = {step.reading.kind: step.reading for step in steps}
    return Schedule(tuple(_groups(steps)), tuple(slides[owner] for owner in read), readings)


def _groups(steps: tuple[Step, ...]) -> Iterator[Group]:
    """Cut the steps into those that run once and those that are iterated together.

    A step that reads ahead is iterated with all up to its owner, and so on for those between.
    Source: `iteration_plan` of whyNLP/LCKV.
    """
    group_of: list[int | None] = []  # the first step of the iterated group that each step is in
    for step in steps:
        if len(group_of) > step.number:
            continue
        if not step.reads_ahead:
            group_of.append(None)
            continue
        top = number = step.number
        while number <= top:
            top = max(top, steps[number].owner)
            number += 1
        group_of += [step.number] * (top + 1 - step.number)
    for first, numbered in groupby(steps, key=lambda step: group_of[step.number]):
        yield Group(tuple(numbered), first is not None)
