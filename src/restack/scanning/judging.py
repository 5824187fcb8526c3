"""From the scores of a scan to its findings: what is better than the base, beyond chance."""

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import transformers

from restack import __version__
from restack.errors import UsageError
from restack.scanning.candidates import BASE, Candidate, base
from restack.scanning.findings import Compared, Entry, Findings, ProbeFacts, Verdict
from restack.scanning.results import HELD_OUT, SEARCHED, Record, Results, candidate_of
from restack.scanning.setting import Setting
from restack.scanning.statistics import balanced, best_of_many, intervals

LEVEL = 0.05  # of significance


def name_of(objective: Sequence[str]) -> str:
    """An objective as it is written."""
    return "+".join(objective)


def leader(setting: Setting, results: Results) -> tuple[Candidate | None, float]:
    """The best candidate so far, and the p value that so good a best of so many has by chance.

    The one that gains most by the objective on the searched questions: of those whose gain is significant
    after correction, if there are any.
    """
    records = _scored(results)
    if not records:
        return None, 1.0
    gains = objective_gains(setting, results, records, SEARCHED)
    p = best_of_many(gains)
    means = gains.mean(axis=1)
    chosen = int(np.argmax(np.where(p <= LEVEL, means, -np.inf) if (p <= LEVEL).any() else means))
    return candidate_of(records[chosen], results.depth), float(p[chosen])


def objective_gains(setting: Setting, results: Results, records: Sequence[Record], asked: str) -> np.ndarray:
    """Gains over the base by the objective, question by question: shape (records, questions)."""
    facts = {probe.name: probe for probe in setting.probes}
    reference = results.scores(base(results.depth).plan, asked)
    assert reference is not None
    parts = [
        _sign(facts[name]) * (_matrix(records, name) - np.asarray(reference[name]))
        for name in setting.objective
    ]
    if len(parts) == 1:
        return np.asarray(parts[0])
    # of all stacks: the base alone may have nearly everything right, and then a question would weigh too much
    every = [r for (said, _), r in results.records.items() if said == SEARCHED and "scores" in r]
    return balanced(parts, [float(np.std(_matrix(every, name))) for name in setting.objective])


def refuse_failed_base(results: Results) -> None:
    """Refuse to go on where the base itself could not be scored.

    Raises:
        UsageError: so it is.
    """
    failed = results.records.get((SEARCHED, str(base(results.depth).plan)), {}).get("error")
    if failed:
        raise UsageError(f"the base itself cannot be scored: {failed}; try other probes")


def judge(setting: Setting, results: Results, stopped: str = "") -> Findings:
    """The findings of a scan; of one that was stopped, and where, those of what is done."""
    entries = _entries(setting, results)
    reference = next(entry for entry in entries if entry.candidate.kind == BASE)
    others = [entry for entry in entries if entry is not reference]
    records = list(results.records.values())
    runs = [record["layer_runs"] for record in records]
    return Findings(
        setting.model,
        setting.depth,
        setting.probes,
        reference,
        tuple(sorted(others, key=lambda entry: _place(entry.candidate))),
        _verdict(setting, results, others),
        {name: _verdict(each, results, others) for name, each in setting.of_each_probe().items()},
        setting.layers,
        (sum(run for run, _ in runs), sum(alone for _, alone in runs)),
        sum(record["seconds"] for record in records),
        conditions(setting),
        stopped,
        setting.identity["model"],
    )


def conditions(setting: Setting) -> dict[str, str]:
    """What the scores were made with."""
    return {
        "model": ", ".join(f"{name} {value}" for name, value in setting.identity["model"].items()),
        "questions": str(setting.identity["split"]),
        "versions": f"Restack {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
    }


def _scored(results: Results) -> list[Record]:
    """The records of the candidates that have scores, the base not among them.

    In an order that does not depend on who was done first, the cheaper first: of two that gain as much, that
    is the better one.
    """
    found = [
        record
        for (asked, _), record in results.records.items()
        if asked == SEARCHED and record["kind"] != BASE and "scores" in record
    ]
    return sorted(found, key=lambda record: (record["visits"], record["plan"]))


def _entries(setting: Setting, results: Results) -> list[Entry]:
    depth = results.depth
    plan = base(depth).plan
    reference = results.scores(plan, SEARCHED)
    assert reference is not None
    records = [results.records[SEARCHED, str(plan)], *_scored(results)]
    compared = {
        probe.name: _compared(probe, _matrix(records, probe.name), np.asarray(reference[probe.name]))
        for probe in setting.probes
    }
    entries = [
        Entry(
            candidate_of(record, depth),
            None,
            {name: found[number] for name, found in compared.items()},
            record["visits"] / depth,
            record["seconds"],
        )
        for number, record in enumerate(records)
    ]
    failed = [
        Entry(candidate_of(r, depth), r["error"], {}, r["visits"] / depth, r["seconds"])
        for (asked, _), r in results.records.items()
        if asked == SEARCHED and "error" in r
    ]
    return entries + failed


def _compared(probe: ProbeFacts, scores: np.ndarray, reference: np.ndarray) -> list[Compared]:
    """Rows of scores (rows, questions) beside those of the base (questions,); p over all rows together."""
    differences = scores - reference
    p = best_of_many(differences, two_sided=True)
    figures = zip(intervals(scores), intervals(differences), p, strict=True)
    sign = _sign(probe)
    return [
        Compared(score, difference, float(each), sign * difference.mean)
        for score, difference, each in figures
    ]


def _verdict(setting: Setting, results: Results, entries: Sequence[Entry]) -> Verdict:
    candidate, p = leader(setting, results)
    if candidate is None:
        return Verdict(setting.objective, None, 1.0, {}, 1.0, "nothing")
    best = next(entry for entry in entries if entry.candidate.plan == candidate.plan)
    plan = base(results.depth).plan
    ours, theirs = results.scores(candidate.plan, HELD_OUT), results.scores(plan, HELD_OUT)
    if ours is None or theirs is None:  # it failed there
        return Verdict(setting.objective, best, p, {}, 1.0, "unconfirmed" if p <= LEVEL else "none")
    held_out = {
        probe.name: _compared(probe, np.array([ours[probe.name]]), np.asarray(theirs[probe.name]))[0]
        for probe in setting.probes
    }
    record = results.records[HELD_OUT, str(candidate.plan)]
    alone = float(best_of_many(objective_gains(setting, results, [record], HELD_OUT))[0])
    looks = sum(name_of(setting.objective) in r.get("chosen_by", ()) for r in results.records.values())
    held_out_p = min(1.0, alone * max(1, looks))  # earlier winners in this folder, too (Bonferroni)
    outcome = "none" if p > LEVEL else "better" if held_out_p <= LEVEL else "unconfirmed"
    by_group = {
        probe.name: _by_group(probe, ours[probe.name], theirs[probe.name])
        for probe in setting.probes
        if probe.groups is not None
    }
    return Verdict(setting.objective, best, p, held_out, held_out_p, outcome, by_group)


def _by_group(probe: ProbeFacts, ours: Sequence[float], theirs: Sequence[float]) -> Mapping[str, Compared]:
    """The winner beside the base on the held-out questions of each group."""
    assert probe.groups is not None
    groups = np.array(probe.groups[1])
    found: dict[str, Compared] = {}
    for group in dict.fromkeys(probe.groups[1]):
        chosen = groups == group
        found[group] = _compared(probe, np.asarray(ours)[chosen][None], np.asarray(theirs)[chosen])[0]
    return found


def _matrix(records: Sequence[Record], probe: str) -> np.ndarray:
    return np.array([record["scores"][probe] for record in records], dtype=float)


def _sign(probe: ProbeFacts) -> int:
    return -1 if probe.lower_is_better else 1


def _place(candidate: Candidate) -> tuple[object, ...]:
    """Where a candidate stands in a report: whatever order it was scored in."""
    return (candidate.kind, candidate.times, -candidate.damp, candidate.block or (0, 0), str(candidate.plan))
