"""Which stacks are tried: blocks that run again, blocks that are left out, and whatever else is named."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restack.errors import PlanError, UsageError
from restack.plans import Plan
from restack.plans import plan as read_plan

MOST_RUNS = 100  # of a block
BASE, BLOCK, SKIP, SPEC, BEAM = "base", "block", "skip", "spec", "beam"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stack to try.

    Attributes:
        plan: over the layers of the model that is scanned.
        kind: "base", "block" (run again), "skip" (left out), "spec" (named by the user) or "beam" (composed).
        block: (i, j) for the layers i..j-1 that are run again or left out; None for other kinds.
        times: how often the block runs: 2 for RYS's blocks, 0 where it is left out.
        damp: of its runs after the first.
    """

    plan: Plan
    kind: str
    block: tuple[int, int] | None = None
    times: int = 1
    damp: float = 1.0

    @property
    def label(self) -> str:
        """A short name: (4,8), (4,8)x3@0.5, -(4,8) where it is left out; the spec of other kinds."""
        if self.block is None:
            return "base" if self.kind == BASE else str(self.plan)
        i, j = self.block
        if self.kind == SKIP:
            return f"-({i},{j})"
        times = f"x{self.times}" if self.times != 2 else ""
        return f"({i},{j}){times}" + (f"@{self.damp:g}" if self.damp != 1 else "")


def base(depth: int) -> Candidate:
    """The model as it is."""
    return Candidate(Plan.of(range(depth), depth), BASE)


def repeated(depth: int, block: tuple[int, int], times: int = 2, damp: float = 1.0) -> Candidate:
    """The layers i..j-1 of a model run `times` times one after another, damped but for the first time.

    With `times` 2 and no damp it is RYS's block (i, j). Damped runs are the sub-steps h + damp * (F(h) - h)
    of "Training-Free Looped Transformers" (arXiv 2605.23872), layer by layer.
    """
    i, j = block
    once = Plan.of(range(i, j), depth).visits
    again = tuple(replace(visit, damp=damp) for visit in once) * (times - 1)
    before, after = Plan.of(range(j), depth).visits, tuple(Plan.of(range(depth), depth).visits[j:])
    return Candidate(Plan((*before, *again, *after), (depth,)), BLOCK, block, times, damp)


def skipped(depth: int, block: tuple[int, int]) -> Candidate:
    """The model without the layers i..j-1; not all of them."""
    i, j = block
    return Candidate(Plan.of([*range(i), *range(j, depth)], depth), SKIP, block, 0)


def blocks(depth: int, widest: int | None = None) -> Iterator[tuple[int, int]]:
    """All (i, j) with i < j of a model, in order; of at most `widest` layers."""
    for i in range(depth):
        for j in range(i + 1, min(depth, i + (widest or depth)) + 1):
            yield i, j


def grid(
    depth: int,
    *,
    repeats: Sequence[int] = (2,),
    damps: Sequence[float] = (1.0,),
    skips: bool = False,
    widest: int | None = None,
) -> list[Candidate]:
    """All blocks of a model run again, and all left out if wanted; the base is not among them.

    Args:
        depth: layers of the model.
        repeats: how often a block runs: 2 or more; none for no repeated blocks.
        damps: of the runs after the first, each with each of `repeats`.
        skips: leave out every block too, but never all layers.
        widest: layers of the widest block; all widths if None.

    Raises:
        UsageError: a number of runs below 2 or above 100, a damp that is none, or no width.
    """
    if any(times < 2 for times in repeats):
        raise UsageError(f"a block that runs {min(repeats)} times is not repeated; write 2 or more")
    if any(times > MOST_RUNS for times in repeats):
        raise UsageError(f"a block that runs {max(repeats)} times is too deep; write at most {MOST_RUNS}")
    if not all(math.isfinite(damp) and damp for damp in damps):
        raise UsageError(
            "a damp of 0 leaves the base as it is, and one that is not finite ruins it; "
            "write others, as in 0.5"
        )
    if widest is not None and widest < 1:
        raise UsageError(f"the widest block has {widest} layers; write 1 or more")
    found = [
        repeated(depth, block, times, damp)
        for times in repeats
        for damp in damps
        for block in blocks(depth, widest)
    ]
    if skips:
        found += [skipped(depth, block) for block in blocks(depth, widest) if block != (0, depth)]
    return found


def named(model: Any, notations: Iterable[Any]) -> list[Candidate]:
    """The plans that a user names, in any notation that `restack.plan` reads.

    Args:
        model: a loaded model, its config, or how many layers it has.
        notations: of plans.

    Raises:
        PlanError: one of them is none.
    """
    return [Candidate(read_plan(notation, model), SPEC) for notation in notations]


def read_specs(path: Path, model: Any) -> list[Candidate]:
    """The plans in a file: one notation a line; empty lines and what follows a # are passed over.

    Raises:
        UsageError: the file cannot be read, or holds none.
        PlanError: a line is no plan for the model; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; name a file of specs") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it") from None
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                found += named(model, [text])
            except PlanError as error:
                raise PlanError(f"{path}, line {number}:\n{error}") from None
    if not found:
        raise UsageError(f"{path} holds no spec; write one a line, as in 0:8,4:12")
    return found


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each plan once, as it came first."""
    found: dict[Plan, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.plan, candidate)
    return list(found.values())
