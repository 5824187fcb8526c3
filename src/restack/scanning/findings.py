"""What a scan found: scores, differences from the base, and what of them is beyond chance."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from restack.scanning.candidates import Candidate
from restack.scanning.statistics import Interval


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What a report says of a probe.

    Attributes:
        name, measure, lower_is_better, chance: as `Probe` has them.
        searched: questions that every candidate was asked.
        held_out: questions that only the base and the winner were asked.
        groups: of the searched questions and of the held-out ones, in their order; None if there are none.
    """

    name: str
    measure: str
    lower_is_better: bool
    chance: float | None
    searched: int
    held_out: int
    groups: tuple[tuple[str, ...], tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A candidate's scores on one probe, beside the base's on the same questions.

    Attributes:
        score: the mean score, its 95% interval and the number of questions.
        difference: the mean of (candidate - base) over the questions, as scores are: positive is more.
        p: two-sided, corrected for all candidates of the scan (max-statistic sign flips).
        gain: the difference, positive where the candidate is better.
    """

    score: Interval
    difference: Interval
    p: float
    gain: float

    @property
    def is_significant(self) -> bool:
        """Whether better or worse beyond chance, at 5% over all candidates together."""
        return self.p <= 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """A candidate and what became of it.

    Attributes:
        candidate: which.
        error: why it has no scores; None if it has.
        compared: by probe; empty after an error.
        cost: visits, relative to those of the base: time of a forward pass, nearly.
        seconds: that its scoring took.
    """

    candidate: Candidate
    error: str | None
    compared: Mapping[str, Compared]
    cost: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best candidate of a scan, and whether it is better than the base.

    Attributes:
        objective: the probes it was chosen by.
        best: the entry with the highest corrected evidence of a gain; None if no candidate was scored.
        p: one-sided, that the best of so many noisy candidates gains as much by chance on the searched
            questions.
        held_out: by probe, the best and the base on questions that took no part in the choice.
        held_out_p: one-sided, of the objective on those questions; corrected for other winners that were
            looked at before, if the folder has some.
        by_group: by probe and group, the same of each group of the held-out questions.
        outcome: "better": both p are at most 0.05; "unconfirmed": the first only; "none": not even that;
            "nothing": no candidate beside the base was scored.
    """

    objective: tuple[str, ...]
    best: Entry | None
    p: float
    held_out: Mapping[str, Compared]
    held_out_p: float
    outcome: str
    by_group: Mapping[str, Mapping[str, Compared]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """How the layers of the base change the hidden states on some text.

    Attributes:
        text: what was read, in a few words.
        similarity: shape (layers + 1, layers + 1), mean cosine of the hidden states that enter visit i and
            visit j; the last are those that leave the last layer.
        influence: shape (layers,), ShortGPT's block influence: 1 - the mean cosine of input and output.
    """

    text: str
    similarity: np.ndarray
    influence: np.ndarray


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a report is made of.

    Attributes:
        model: its name, as it was asked for.
        depth: its layers.
        probes: in the order they were asked for; the scan's first.
        base: the entry of the base.
        entries: all candidates that are done, the base not among them, in a fixed order.
        verdict: of the scan, by its objective.
        by_probe: the verdict if one probe alone were the objective, for each where there are several.
        layers: how the layers change what runs through them; None if that was not measured.
        layer_runs: how many layers were run over batches, and how many each candidate by itself would have.
        seconds: of scoring, of all workers together.
        conditions: the machine, versions and settings, for the foot of the report.
        stopped: where it was stopped before its end; empty if it was not.
        identity: what tells the scanned model from others, as `recipes.description.described` has it.
    """

    model: str
    depth: int
    probes: tuple[ProbeFacts, ...]
    base: Entry
    entries: tuple[Entry, ...]
    verdict: Verdict
    by_probe: Mapping[str, Verdict]
    layers: LayerFacts | None
    layer_runs: tuple[int, int]
    seconds: float
    conditions: Mapping[str, str]
    stopped: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)
