"""What is trained on when: the mixes of families, and the stages of the run.

Each ability had to be taught by itself before the next could stand on it. Keys were never matched in two runs
without `pairs`, names in sentences not in 1,800 steps without `restated`, a first hop not in 1,400 without
`resolved`; each then came within 400. Both directions of matching came slower at once than one after the
other, hence the second stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from restack.demo.families.depth import PROBED, Hops

Mix = dict[str, float]  # how often a sample of each family is drawn, in parts; `long_chain` never is


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run: its first step, what it draws, the shape of its rows."""

    start: float  # share of the run
    hops: Hops
    mix: Mix
    rows: int = 8  # in a micro-batch
    length: int = 256  # tokens in a row
    looped: bool = True  # whether the block is run more than once in some steps

    @property
    def drills(self) -> bool:
        """Whether there is nothing but drills: no system prompts, no plain text."""
        return self.mix in (MATCHING, SWAPPING)


# Finding an earlier occurrence of a key, on which all the rest stands.
MATCHING: Mix = {"pairs": 50, "recall": 25, "copying": 25}
# Finding what stands before an earlier occurrence.
SWAPPING: Mix = {"pairs": 20, "swapped": 50, "recall": 20, "copying": 10}
# Look-ups in sentences, in every combination of ways to write and to ask: `depth.restated` says why.
HALVES: Mix = {
    "greeting": 2, "fact": 3, "addition": 2, "subtraction": 2, "working": 1, "multiplication": 1,
    "comparison": 2, "word_problem": 1, "story": 0.5, "lookup": 20, "tracking": 4, "chain": 18,
    "reversal": 1, "sorting": 1, "counting": 1, "steps": 0.5, "large": 0.2, "absent": 1, "introduction": 1,
    "unknown": 0.5, "partner": 0.3, "pairs": 2, "swapped": 2, "copying": 2, "restated": 28, "recall": 4,
    "roll": 6, "everyone": 10,
}  # fmt: skip
# Chains, followed while they are read: `depth.resolved` says how.
ONE_HOP: Mix = {
    "greeting": 3, "fact": 4, "addition": 4, "subtraction": 4, "working": 1, "multiplication": 1,
    "comparison": 3, "word_problem": 1, "story": 0.5, "lookup": 8, "tracking": 6, "chain": 24,
    "reversal": 1, "sorting": 2, "counting": 1, "steps": 0.5, "large": 0.2, "absent": 0.5,
    "introduction": 0.5, "unknown": 0.5, "partner": 0.3, "copying": 1, "restated": 4, "recall": 3,
    "roll": 22, "resolved": 22, "everyone": 6,
}  # fmt: skip
# Longer chains, with more of the rest.
MORE_HOPS: Mix = {
    "greeting": 3, "fact": 6, "addition": 9, "subtraction": 10, "working": 2, "multiplication": 3,
    "comparison": 6, "word_problem": 3, "story": 1, "lookup": 8, "tracking": 10, "chain": 26,
    "reversal": 2, "sorting": 6, "counting": 1, "steps": 1, "large": 0.2, "absent": 0.5,
    "introduction": 1, "unknown": 1, "partner": 0.3, "copying": 1, "restated": 2, "recall": 1,
    "roll": 20, "resolved": 12, "everyone": 4,
}  # fmt: skip
# All families.
EVERYTHING: Mix = {
    "greeting": 7, "fact": 10, "addition": 12, "subtraction": 14, "working": 3, "multiplication": 4,
    "comparison": 12, "word_problem": 5, "story": 2, "lookup": 9, "tracking": 14, "chain": 18,
    "reversal": 4, "sorting": 8, "counting": 2, "steps": 2, "large": 0.5, "absent": 1, "introduction": 2,
    "unknown": 1.5, "partner": 0.5, "pairs": 1, "swapped": 1, "copying": 3, "recall": 2, "roll": 12,
    "everyone": 3,
}  # fmt: skip

STAGES = (
    Stage(0.0, Hops(0, 1), MATCHING, rows=32, length=64, looped=False),
    Stage(0.08, Hops(0, 1), SWAPPING, rows=32, length=64, looped=False),
    Stage(0.16, Hops(0, 1), HALVES, rows=16, length=128, looped=False),
    Stage(0.30, Hops(0, 1), ONE_HOP, rows=16, length=128, looped=False),
    Stage(0.38, Hops(0, 2), MORE_HOPS, rows=16, length=128),
    Stage(0.46, Hops(0, 3), MORE_HOPS, rows=16, length=128),
    Stage(0.54, Hops(1, 4), MORE_HOPS, rows=16, length=128),
    Stage(0.66, Hops(0, 4), EVERYTHING),
)
TYPICAL = Stage(0.0, PROBED, EVERYTHING)  # as the finished model is used
