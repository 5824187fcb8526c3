"""The report as Markdown."""

import re
from collections.abc import Iterable, Sequence

from restack.scanning.findings import Compared, Entry, Findings
from restack.scanning.reporting.data import by_group
from restack.scanning.reporting.order import ranked, worst
from restack.scanning.reporting.telling import (
    BY_EACH,
    advice,
    best_rows,
    command,
    conditions,
    counts,
    failures,
    group_rows,
    how_to_read,
    picture_titles,
    probe_rows,
)
from restack.scanning.reporting.verdict import headline
from restack.scanning.reporting.wording import (
    Wording,
    p_value,
    shortened,
    verdict_word,
    wordings,
)

BEST, WORST = 15, 5  # rows
NAMED = 5  # plans that ended in the same error
ORDER = "By p on the objective, the gains first; of equal p, by the gain beside its standard error."
MARKS = re.compile(r"[\\`*\[\]|$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=[A-Za-z0-9#]+;)")


def as_markdown(findings: Findings, pictures: Sequence[str]) -> str:
    """The report of a scan.

    Args:
        findings: of the scan.
        pictures: names of the files in the folder pictures/ beside the report.
    """
    words = wordings(findings)
    parts = [f"# {escaped(findings.model)}: which stack is better", f"**{escaped(headline(findings))}**"]
    if told := advice(findings):
        parts.append(escaped(told))
    if typed := command(findings):
        parts.append(f"    {typed}")
    parts += ["## What was asked", _table(*probe_rows(findings))]
    if findings.entries:
        parts += ["## What came out", _table(*counts(findings))]
    head, lines = best_rows(findings)
    if lines:
        parts += [f"## {BY_EACH}", _table(head, lines)]
    best, rest = ranked(findings), failures(findings)
    if best:
        shown = best[:BEST]
        title = f"The best {len(shown)} of {len(best)}" if len(best) > len(shown) else "All that were scored"
        parts += [f"## {title}", ORDER, _entries(shown, words)]
        known = {id(entry) for entry in shown}
        lost = [entry for entry in worst(findings, WORST) if id(entry) not in known]
        if lost:
            parts += ["## The worst", _entries(lost, words)]
    for probe, groups in by_group(findings.verdict).items():
        parts += [
            f"## {escaped(probe)} by group: the best and the base on held-out questions",
            _table(*group_rows(groups, words[probe])),
        ]
    if pictures:
        titles = picture_titles(findings)
        parts += ["## Pictures", *(f"![{escaped(titles.get(n, n))}](pictures/{n})" for n in pictures)]
    if rest:
        parts += ["## What failed", "\n".join(_failure(error, plans) for error, plans in rest)]
    parts += ["## How to read this", "\n".join(f"- {escaped(line)}" for line in how_to_read(findings))]
    parts += [
        "## Cost and conditions",
        "\n".join(f"- {escaped(n)}: {escaped(v)}" for n, v in conditions(findings)),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return HTML.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", line)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell if number == 1 else escaped(cell) for cell in line)} |"
        for number, line in enumerate(lines)
    )


def _entries(entries: Iterable[Entry], words: dict[str, Wording]) -> str:
    head = ["stack", "plan", "cost"]
    for name, word in words.items():
        head += [f"{name}, {word.direction}", "minus the base", "p"]
    lines = [head, ["---"] * len(head)]
    for entry in entries:
        plan = f"`{shortened(str(entry.candidate.plan), 100)}`"
        line = [escaped(shortened(entry.candidate.label)), plan, f"{entry.cost:.2f}"]
        for name, word in words.items():
            line += _cells(entry.compared.get(name), word)
        lines.append(line)
    lines[0] = [escaped(cell) for cell in head]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(compared: Compared | None, words: Wording) -> list[str]:
    if compared is None:
        return ["", "", ""]
    beyond = verdict_word(compared)
    difference = words.signed(compared.difference.mean)
    return [
        f"{words.number(compared.score.mean)} ({words.reach(compared.score)})"
        + (f", perplexity {told}" if (told := words.perplexity(compared.score.mean)) else ""),
        f"{f'**{difference}**' if beyond else difference} ({words.signed_reach(compared.difference)})",
        escaped(f"{p_value(compared.p)} {beyond}".strip()),
    ]


def _failure(error: str, plans: Sequence[str]) -> str:
    told = ", ".join(f"`{plan}`" for plan in plans[:NAMED])
    more = f" and {len(plans) - NAMED} more" if len(plans) > NAMED else ""
    return f"- {told}{more}: {escaped(error)}"
