"""What both reports tell, in rows and lines of plain text."""

import shlex
from collections.abc import Mapping

from restack.scanning.findings import Compared, Findings
from restack.scanning.reporting.order import file_names, variants, with_probe
from restack.scanning.reporting.wording import (
    Wording,
    duration,
    p_equals,
    p_value,
    scored,
    shortened,
    wordings,
)
from restack.scanning.statistics import FLIPS, RESAMPLES

BY_EACH = "The best by each probe alone"
VERDICTS = {"better": "yes", "unconfirmed": "not confirmed", "none": "no", "nothing": ""}
Rows = tuple[list[str], list[list[str]]]  # the head of a table, and its lines


def advice(findings: Findings) -> str:
    """What follows from what was found; empty if nothing does."""
    verdict = findings.verdict
    if verdict.best is None:
        return ""
    if verdict.outcome == "better":
        visits = f"{len(verdict.best.candidate.plan)} layer visits for the base's {findings.depth}"
        return f"It runs {visits}: {verdict.best.cost:.2f} times the work, and no more memory for weights."
    if verdict.outcome == "unconfirmed":
        return "What looks best among many is partly luck; more questions would tell how much."
    if verdict.outcome == "none" and verdict.held_out_p <= 0.05:
        gained = f"It did gain on the held-out questions ({p_equals(verdict.held_out_p)})"
        alone = f"--no-blocks --spec {shlex.quote(str(verdict.best.candidate.plan))}"
        return f"{gained}: scan it alone ({alone}, and another --seed) before believing it."
    if others := [name for name, each in findings.by_probe.items() if each.outcome == "better"]:
        return f"By {' and by '.join(others)} alone, a stack is better beyond chance; see below."
    if any(entry.error is None and entry.candidate.times > 1 for entry in findings.entries):
        return "Running a block of layers again does not help this model, as far as these questions can tell."
    return ""


def command(findings: Findings) -> str:
    """What to type to try the best; empty if it is not better, or has no name on the command line."""
    verdict = findings.verdict
    if verdict.outcome != "better" or verdict.best is None or "@" in findings.model:
        return ""
    return f"restack chat {shlex.quote(f'{findings.model}@{verdict.best.candidate.plan}')}"


def probe_rows(findings: Findings) -> Rows:
    """What was asked, and how the base does."""
    head = ["probe", "measure", "questions", "held out", "chance", "base", "95% interval"]
    rows = []
    for name, words in wordings(findings).items():
        facts, base = words.facts, findings.base.compared.get(name)
        rows.append(
            [
                name + (" (the objective)" if name in findings.verdict.objective else ""),
                f"{facts.measure}, {words.direction}",
                str(facts.searched),
                str(facts.held_out),
                "" if facts.chance is None else f"{facts.chance:.3g}",
                "" if base is None else words.score(base.score.mean),
                "" if base is None else words.reach(base.score),
            ]
        )
    return head, rows


def counts(findings: Findings) -> Rows:
    """How many candidates of each kind are better and worse than the base beyond chance."""
    names = [facts.name for facts in findings.probes]
    head = ["stacks", "tried", "failed"]
    for name in names:
        head += [f"{name}: better", "worse", "neither"]
    rows = []
    for variant in variants(findings):
        failures = sum(entry.error is not None for entry in variant.entries)
        row = [variant.name, str(len(variant.entries)), str(failures)]
        for name in names:
            known = [compared for _, compared in with_probe(variant.entries, name)]
            better = sum(compared.is_significant and compared.gain > 0 for compared in known)
            worse = sum(compared.is_significant and compared.gain < 0 for compared in known)
            row += [str(better), str(worse), str(len(known) - better - worse)]
        rows.append(row)
    return head, rows


def best_rows(findings: Findings) -> Rows:
    """The best stack by each probe alone, where there are several, and what held-out questions say of it."""
    head = [
        "by",
        "best stack",
        "plan",
        "as it was chosen",
        "p",
        "on held-out questions",
        "p",
        "beyond chance",
    ]
    rows = []
    for name, verdict in findings.by_probe.items():
        words, best, held_out = wordings(findings)[name], verdict.best, verdict.held_out.get(name)
        if best is None:
            continue
        told = ["", "", ""]
        if held_out is not None:
            difference = held_out.difference
            told = [
                f"{words.signed(difference.mean)} ({words.signed_reach(difference)})",
                p_value(verdict.held_out_p),
                VERDICTS[verdict.outcome],
            ]
        chosen = words.signed(best.compared[name].difference.mean)
        plan = shortened(str(best.candidate.plan), 60)
        rows.append([name, best.candidate.label, plan, chosen, p_value(verdict.p), *told])
    return head, rows


def picture_titles(findings: Findings) -> dict[str, str]:
    """What each picture shows, by the name of its file."""
    heat = file_names(facts.name for facts in findings.probes)
    titles = {
        f"heat-{file}.png": f"{name}: the gain of each block (i, j) over the base"
        for name, file in heat.items()
    }
    return {
        **titles,
        "pareto.png": "gain against cost",
        "similarity.png": "similarity of the hidden states between layers",
        "influence.png": "block influence of each layer",
    }


def failures(findings: Findings) -> list[tuple[str, list[str]]]:
    """Each error, and the plans of the candidates that ended in it."""
    found: dict[str, list[str]] = {}
    for entry in findings.entries:
        if entry.error is not None:
            found.setdefault(entry.error, []).append(shortened(str(entry.candidate.plan), 100))
    return list(found.items())


def group_rows(groups: Mapping[str, Compared], words: Wording) -> Rows:
    """The best and the base on the held-out questions of each group."""
    head = ["group", "n", "base", "best", f"difference ({words.direction})", "95% interval"]
    return head, [
        [
            name,
            str(compared.score.n),
            words.number(compared.score.mean - compared.difference.mean),
            words.number(compared.score.mean),
            words.signed(compared.difference.mean),
            words.signed_reach(compared.difference),
        ]
        for name, compared in groups.items()
    ]


def how_to_read(findings: Findings) -> list[str]:
    """Where the figures come from, and what they mean."""
    count = scored(findings)
    return [
        f"95% intervals are from {RESAMPLES} bootstrap samples of the questions, of each stack by itself; "
        "no width says that all answers scored alike, not that the score is certain.",
        "Differences are stack minus base on the same questions (paired): they are known better than scores.",
        f"p of a stack is how often chance alone makes the most extreme of all {count} differ as much, by "
        f"{FLIPS} random flips of the differences' signs, the same for all stacks (max statistic). Beyond "
        "chance is 0.05 or less.",
        "The best was scored again on held-out questions, which took no part in the choice: the headline. On "
        "the questions it was chosen by, the best of many looks better than it is. They are not the same, so "
        "the base scores otherwise on them too.",
        "The best is the stack that gains most among those better beyond chance, if there are any; of stacks "
        "that gain as much, the cheapest. Its p is one-sided (better), those in the tables are two-sided "
        "(different)."
        + (" Each probe alone is judged without correction for the others." if findings.by_probe else ""),
        "Grey is what these questions cannot tell from the base: no proof that it changes nothing.",
    ]


def conditions(findings: Findings) -> list[tuple[str, str]]:
    """What the scan cost, and where it ran."""
    done, alone = findings.layer_runs
    shared = f"{done:,}" + (
        f", for {alone:,} if each stack ran by itself ({alone / done:.1f} times as many)"
        if alone > done > 0
        else ""
    )
    scoring = f"{duration(findings.seconds)} for {len(findings.entries) + 1} stacks, the base among them"
    return [("layer runs over batches", shared), ("scoring", scoring), *findings.conditions.items()]
