"""Findings as plain data, for scripts."""

import math
from collections.abc import Mapping
from typing import Any

from restack.scanning.candidates import Candidate
from restack.scanning.findings import Compared, Entry, Findings, Verdict
from restack.scanning.reporting.order import best_beyond_chance, limit
from restack.scanning.reporting.verdict import headline
from restack.scanning.reporting.wording import Wording, variant_name, wordings
from restack.scanning.statistics import Interval


def summary(findings: Findings) -> dict[str, Any]:
    """What a scan found, in types that JSON has; numbers that are not finite are null.

    Differences are candidate - base as the probe scores; `gain` is positive where the candidate is better.
    `p` of an entry is two-sided and corrected for all candidates, that of the verdict one-sided. A probe's
    `decimals`, `limit` (the gain at which colours end) and `largest_gain` (the plan of the block that gains
    most beyond chance) are what the report's heat map has.
    """
    return {
        "model": findings.model,
        "depth": findings.depth,
        "identity": dict(findings.identity),
        "headline": headline(findings),
        "stopped": findings.stopped or None,
        "probes": [_probe(findings, words) for words in wordings(findings).values()],
        "base": {name: _interval(compared.score) for name, compared in findings.base.compared.items()},
        "verdict": _verdict(findings.verdict),
        "by_probe": {name: _verdict(verdict) for name, verdict in findings.by_probe.items()},
        "entries": [_entry(entry) for entry in findings.entries],
        "layer_runs": {"done": findings.layer_runs[0], "without_sharing": findings.layer_runs[1]},
        "seconds": _number(findings.seconds),
        "conditions": dict(findings.conditions),
    }


def _probe(findings: Findings, words: Wording) -> dict[str, Any]:
    facts, best = words.facts, best_beyond_chance(findings, words.facts.name)
    return {
        "name": facts.name,
        "measure": facts.measure,
        "lower_is_better": facts.lower_is_better,
        "chance": facts.chance,
        "questions": facts.searched,
        "held_out_questions": facts.held_out,
        "decimals": words.decimals,
        "limit": limit(findings, facts.name),
        "largest_gain": None if best is None else str(best.candidate.plan),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome,
        "objective": list(verdict.objective),
        "best": None if verdict.best is None else _candidate(verdict.best.candidate),
        "p": _number(verdict.p),
        "held_out": _all_compared(verdict.held_out),
        "held_out_p": _number(verdict.held_out_p),
        "by_group": {probe: _all_compared(groups) for probe, groups in by_group(verdict).items()},
    }


def by_group(verdict: Verdict) -> Mapping[str, Mapping[str, Compared]]:
    """The best and the base on the held-out questions of each group, by probe."""
    return {probe: groups for probe, groups in verdict.by_group.items() if groups}


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        **_candidate(entry.candidate),
        "cost": _number(entry.cost),
        "seconds": _number(entry.seconds),
        "error": entry.error,
        "scores": _all_compared(entry.compared),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "plan": str(candidate.plan),
        "label": candidate.label,
        "kind": candidate.kind,
        "what": variant_name(candidate.kind, candidate.times, candidate.damp),
        "block": None if candidate.block is None else list(candidate.block),
        "times": candidate.times,
        "damp": candidate.damp,
    }


def _all_compared(of: Mapping[str, Compared]) -> dict[str, Any]:
    return {
        name: {
            **_interval(compared.score),
            "difference": _interval(compared.difference),
            "gain": _number(compared.gain),
            "p": _number(compared.p),
        }
        for name, compared in of.items()
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "mean": _number(interval.mean),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "n": int(interval.n),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
