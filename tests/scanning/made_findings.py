"""Findings with chosen numbers, for the tests of reports and pictures."""

import numpy as np

from restack.scanning.candidates import Candidate, base, grid, named
from restack.scanning.findings import Compared, Entry, Findings, LayerFacts, ProbeFacts, Verdict
from restack.scanning.statistics import Interval

CHAINS = ProbeFacts("chains", "accuracy", False, 0.5, 200, 400)
TEXT = ProbeFacts("text", "loss, nats a token", True, None, 50, 80)
BASES = {"chains": 0.9, "text": 2.0}


def compared(probe: ProbeFacts, difference: float, p: float, *, half: float = 0.02, n: int = 0) -> Compared:
    """A candidate whose scores differ so much from the base's; all intervals reach `half` to either side."""
    mean, n = BASES.get(probe.name, 0.5) + difference, n or probe.searched
    return Compared(
        Interval(mean, mean - half, mean + half, n),
        Interval(difference, difference - half, difference + half, n),
        p,
        -difference if probe.lower_is_better else difference,
    )


def entry(candidate: Candidate, scores: dict[str, Compared], error: str | None = None) -> Entry:
    return Entry(candidate, error, scores, len(candidate.plan) / candidate.plan.depths[0], 0.5)


def effect(candidate: Candidate) -> tuple[float, float]:
    """The gain of a candidate and its p: (4,8) helps, its neighbours nearly, the first layer ruins."""
    if candidate.block is None:
        return 0.01, 0.7
    i, j = candidate.block
    if i == 0 or candidate.times == 0:
        return -0.7, 0.0002
    if (i, j) == (4, 8):
        return 0.08 + 0.005 * candidate.times, 0.001
    return 0.04 - 0.015 * (abs(i - 4) + abs(j - 8)), 0.3


def made(
    probes: tuple[ProbeFacts, ...] = (CHAINS, TEXT),
    *,
    depth: int = 12,
    model: str = "demo",
    candidates: list[Candidate] | None = None,
    failing: int = 0,
    layers: bool = True,
    outcome: str | None = None,
    held_out: float = 0.045,
    p: float = 0.003,
    held_out_p: float = 0.004,
    by_group: dict[str, dict[str, Compared]] | None = None,
) -> Findings:
    """A scan's findings; the first probe is the objective.

    Args:
        probes: asked.
        depth: of the model.
        model: its name.
        candidates: tried; all blocks twice and three times, and left out, if None.
        failing: how many of them fail, the first ones.
        layers: whether the base's layers were measured.
        outcome: of the verdict; "better", or "nothing" if all fail, if None.
        held_out: the gain of the best on held-out questions, of all probes.
        p, held_out_p, by_group: of the verdict.
    """
    tried = grid(depth, repeats=(2, 3), skips=True) if candidates is None else candidates
    entries = []
    for number, candidate in enumerate(tried):
        gain, chance = effect(candidate)
        signs = {probe.name: -1 if probe.lower_is_better else 1 for probe in probes}
        scores = {probe.name: compared(probe, signs[probe.name] * gain, chance) for probe in probes}
        is_failing = number < failing
        entries.append(
            entry(candidate, {} if is_failing else scores, "out of memory" if is_failing else None)
        )
    scored = [each for each in entries if each.error is None]
    first = probes[0].name
    best = max(scored, key=lambda each: each.compared[first].gain) if scored else None
    others = {
        probe.name: compared(
            probe, -held_out if probe.lower_is_better else held_out, held_out_p, half=0.033, n=probe.held_out
        )
        for probe in probes
    }
    verdict = Verdict(
        (first,), best, p, others if best else {}, held_out_p, outcome or ("better" if best else "nothing"),
        by_group or {},
    )  # fmt: skip
    same = {probe.name: compared(probe, 0.0, 1.0) for probe in probes}
    by_probe = {probe.name: verdict for probe in probes} if len(probes) > 1 else {}
    return Findings(
        model, depth, probes, entry(base(depth), same), tuple(entries), verdict, by_probe,
        made_layers(depth) if layers else None, (1000, 2500), 90.0, {"torch": "2.13.0", "seed": "0"},
    )  # fmt: skip


def made_layers(depth: int) -> LayerFacts:
    places = np.arange(depth + 1)
    similarity = np.exp(-np.abs(np.subtract.outer(places, places)) / depth)
    return LayerFacts("the sample text", similarity, 1 - np.diagonal(similarity, 1))


def specs() -> list[Candidate]:
    return named(12, ["0:8,4:12", "0:6,3:12", "::-1"])
