"""Blocks composed into stacks: a beam search over sets of disjoint blocks, as in the second part of RYS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from restack.errors import UsageError
from restack.plans import Plan
from restack.plans import plan as read_plan
from restack.scanning.candidates import BEAM, BLOCK, Candidate

Blocks = tuple[tuple[int, int], ...]  # ascending and disjoint; each run twice


@dataclass(frozen=True, slots=True)
class Beam:
    """How far to search.

    Attributes:
        width: sets of blocks that are kept at each size.
        most: blocks of the largest set.
        parts: how many single blocks, the best of those that were scanned, are put together.
    """

    width: int = 4
    most: int = 3
    parts: int = 24

    def __post_init__(self) -> None:
        for name in ("width", "most", "parts"):
            if getattr(self, name) < 1:
                raise UsageError(f"the beam's {name} is {getattr(self, name)}; write 1 or more")

    def singles(self, gains: Mapping[Plan, float], depth: int) -> list[Blocks]:
        """The best single blocks, the best first.

        Args:
            gains: of each plan that was scored, over the base by the objective.
            depth: layers of the model.
        """
        found: list[Blocks] = [((i, j),) for i in range(depth) for j in range(i + 1, depth + 1)]
        scored = [blocks for blocks in found if composed(blocks, depth).plan in gains]
        return sorted(scored, key=lambda blocks: -gains[composed(blocks, depth).plan])[: self.parts]

    def larger(self, kept: Sequence[Blocks], singles: Sequence[Blocks]) -> list[Blocks]:
        """Each of the sets that are kept with one more block."""
        found = {
            tuple(sorted((*blocks, single[0])))
            for blocks in kept
            for single in singles
            if all(single[0][1] <= i or j <= single[0][0] for i, j in blocks)
        }
        return sorted(found)

    def best(self, sets: Sequence[Blocks], gains: Mapping[Plan, float], depth: int) -> list[Blocks]:
        """Those of the sets that gain most, no more than the beam is wide."""
        scored = [blocks for blocks in sets if composed(blocks, depth).plan in gains]
        return sorted(scored, key=lambda blocks: (-gains[composed(blocks, depth).plan], blocks))[: self.width]


def is_single(candidate: Candidate) -> bool:
    """Whether a candidate is a block that can be put together with others."""
    return candidate.kind == BLOCK and candidate.times == 2 and candidate.damp == 1


def composed(blocks: Blocks, depth: int) -> Candidate:
    """The model with each of these blocks run twice."""
    return Candidate(read_plan(blocks=blocks, layers=depth), BEAM)
