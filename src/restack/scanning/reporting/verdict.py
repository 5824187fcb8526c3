"""The sentence that says how a scan came out."""

from collections.abc import Mapping

from restack.scanning.findings import Compared, Findings
from restack.scanning.reporting.wording import Wording, named, p_equals, scored, shortened, wordings


def headline(findings: Findings) -> str:
    """How a scan came out, in some sentences: by held-out questions, if it found anything."""
    if findings.stopped:
        so_far = _outcome(findings)
        return f"The scan was stopped, {findings.stopped}, so this is not its result. So far: {so_far}"
    return _outcome(findings)


def _outcome(findings: Findings) -> str:
    verdict, count = findings.verdict, scored(findings)
    best = verdict.best
    if verdict.outcome == "nothing" or best is None:
        failed = len(findings.entries) - count
        more = f", and {failed} failed" if failed else ""
        return f"Nothing was compared: no stack beside the base was scored{more}."
    objective = {name: words for name, words in wordings(findings).items() if name in verdict.objective}
    on = "" if len(objective) == len(findings.probes) else f" on {' and '.join(objective)}"
    chosen = f"{p_equals(verdict.p)} as the best of {count}" if count > 1 else p_equals(verdict.p)
    held_out = _held_out(objective, verdict.held_out)
    if verdict.outcome == "none":
        none = (
            f"No stack of {count} is better than the base{on} beyond chance. "
            f"The best looking is {shortened(best.candidate.label)} ({chosen}): "
        )
        alone = f"{named(best.candidate)} is not better than the base{on} beyond chance ({chosen}): "
        both = _on_both(objective, best.compared, verdict.held_out)
        return f"{none if count > 1 else alone}{both}."
    searched = sum(words.facts.searched for words in objective.values())
    if verdict.outcome == "better":
        return (
            f"On held-out questions, {named(best.candidate)} is better than the base{on} beyond chance "
            f"({p_equals(verdict.held_out_p)}): {held_out}. "
            f"It was chosen on {searched} other questions ({chosen})."
        )
    first = (
        f"On held-out questions, {named(best.candidate)} is not better than the base{on} beyond chance "
        f"({p_equals(verdict.held_out_p)}): {held_out}."
        if held_out
        else f"{named(best.candidate)} could not be scored on held-out questions, so nothing is confirmed."
    )
    seemed = "; ".join(
        f"{_subject(words)} {_moved(words, best.compared[name])}"
        for name, words in objective.items()
        if name in best.compared
    )
    return f"{first} On the {searched} questions it was chosen by it had seemed better ({chosen}): {seemed}."


def _held_out(objective: Mapping[str, Wording], held_out: Mapping[str, Compared]) -> str:
    return "; ".join(
        f"{_subject(words)} {words.moved(compared.difference)}, {_from_to(words, compared)}, "
        f"n = {compared.score.n}"
        for name, words in objective.items()
        if (compared := held_out.get(name)) is not None
    )


def _on_both(
    objective: Mapping[str, Wording], searched: Mapping[str, Compared], held_out: Mapping[str, Compared]
) -> str:
    parts = []
    for name, words in objective.items():
        if name not in searched:
            continue
        compared = searched[name]
        moved, n = _moved(words, compared), compared.score.n
        told = f"{_subject(words)} {moved} on the {n} questions it was chosen by"
        if name in held_out:
            other = held_out[name]
            told += f" and {words.moved(other.difference)} on {other.score.n} held-out ones"
            told += f", {_from_to(words, other)}"
        parts.append(told)
    return "; ".join(parts)


def _subject(words: Wording) -> str:
    """Chains accuracy, text loss: what moves."""
    return f"{words.facts.name} {words.facts.measure.partition(',')[0]}"


def _moved(words: Wording, compared: Compared) -> str:
    mean = compared.difference.mean
    return words.sided(mean) if words.facts.lower_is_better else words.signed(mean)


def _from_to(words: Wording, compared: Compared) -> str:
    base = compared.score.mean - compared.difference.mean
    told = f"from {words.number(base)} to {words.number(compared.score.mean)}"
    before, after = words.perplexity(base), words.perplexity(compared.score.mean)
    return f"{told} (perplexity {before} to {after})" if before and after else told
