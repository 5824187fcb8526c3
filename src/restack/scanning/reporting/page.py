"""The report as one page of HTML that needs nothing else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from restack.scanning.findings import Compared, Entry, Findings
from restack.scanning.reporting import charts
from restack.scanning.reporting.data import by_group
from restack.scanning.reporting.heat_chart import heat_chart, heat_key
from restack.scanning.reporting.order import ranked, variants, with_probe
from restack.scanning.reporting.telling import (
    BY_EACH,
    Rows,
    advice,
    best_rows,
    command,
    conditions,
    counts,
    failures,
    group_rows,
    how_to_read,
    probe_rows,
)
from restack.scanning.reporting.verdict import headline
from restack.scanning.reporting.wording import (
    Wording,
    p_value,
    shortened,
    variant_name,
    verdict_word,
    wordings,
)

CHIPS = {
    "better": "better beyond chance",
    "unconfirmed": "not confirmed",
    "none": "nothing beyond chance",
    "nothing": "nothing compared",
}
# The browser itself then refuses whatever the page could ask of the network.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
POINT = '<p class="told soft" aria-live="polite">Point at a mark to read it.</p>'


def as_page(findings: Findings) -> str:
    """The report of a scan, self-contained: style, script and charts are in it."""
    words = wordings(findings)
    title = f"{findings.model}: which stack is better"
    parts = [
        _head(findings, words),
        _section("What was asked", _table(probe_rows(findings), numeric_from=2)),
        _section("What came out", _table(counts(findings), numeric_from=1)) if findings.entries else "",
        _section(BY_EACH, _table(best_rows(findings), numeric_from=3)) if findings.by_probe else "",
        *(_heat(findings, word) for word in words.values()),
        _pareto(findings, words),
        _entries(findings, words),
        *(_groups(words[name], groups) for name, groups in by_group(findings.verdict).items()),
        _layers(findings),
        _failures(findings),
        _section("How to read this", _list(escape(line) for line in how_to_read(findings))),
        _section("Cost and conditions", _pairs(conditions(findings))),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n"
    )


def _head(findings: Findings, words: Mapping[str, Wording]) -> str:
    verdict = findings.verdict
    first, _, rest = headline(findings).replace(" = ", "\u00a0=\u00a0").partition(". ")
    lead = [rest, advice(findings)]
    typed = command(findings)
    names = sorted(verdict.held_out, key=lambda name: name not in verdict.objective)
    tiles = [_tile(words[name], verdict.held_out[name], name in verdict.objective) for name in names]
    return "\n".join(
        [
            "<header>",
            f'<p class="above">restack scan of {escape(findings.model)}, {findings.depth} layers '
            f'<span class="chip {escape(verdict.outcome)}">{CHIPS.get(verdict.outcome, "")}</span></p>',
            f"<h1>{escape(first if first.endswith('.') else first + '.')}</h1>",
            *(f'<p class="lead">{escape(line)}</p>' for line in lead if line),
            f"<pre><code>{escape(typed)}</code></pre>" if typed else "",
            f'<div class="tiles">{"".join(tiles)}</div>' if tiles else "",
            "</header>",
        ]
    )


def _tile(words: Wording, compared: Compared, is_objective: bool) -> str:
    """A held-out difference, as large as it deserves."""
    difference, facts = compared.difference, words.facts
    style = verdict_word(compared) or "even"
    base = compared.score.mean - difference.mean
    what = f"{facts.name}, {facts.measure}" + ("" if is_objective else " (not the objective)")
    return (
        f'<div class="tile {style}"><h3>{escape(what)}</h3>'
        f'<div class="big">{words.signed(difference.mean)} <small>{words.direction}</small></div>'
        f'<p class="soft">95% interval {words.signed_reach(difference)}, n = {compared.score.n} held out</p>'
        f"{charts.whisker(difference, words)}"
        f'<p class="soft">base {words.score(base)}, best {words.score(compared.score.mean)}</p></div>'
    )


def _heat(findings: Findings, words: Wording) -> str:
    panels = [variant for variant in variants(findings) if variant.has_blocks]
    if not any(with_probe(panel.entries, words.facts.name) for panel in panels):
        return ""
    drawn = "".join(
        f'<div class="panel"><h3>{escape(panel.name)}</h3>{heat_chart(findings, panel, words)}</div>'
        for panel in panels
    )
    intro = (
        "Each cell is a block of layers, i to j - 1, and its colour the gain over the base. "
        f"Measure: {words.facts.measure}, {words.direction}."
    )
    return _section(
        f"{words.facts.name}: which block",
        f'<p class="soft">{escape(intro)}</p><figure><div class="panels">{drawn}</div>'
        f"{heat_key(findings, words)}{POINT}</figure>",
    )


def _pareto(findings: Findings, words: Mapping[str, Wording]) -> str:
    objective = findings.verdict.objective
    pairs = with_probe(findings.entries, objective[0]) if objective else []
    if not pairs:
        return ""
    word = words[objective[0]]
    panel = f'<div class="panels"><div class="panel wide">{charts.pareto_chart(findings, word)}</div></div>'
    return _section(
        f"{word.facts.name}: what a gain costs", f"<figure>{panel}{charts.pareto_key()}{POINT}</figure>"
    )


def _layers(findings: Findings) -> str:
    layers = findings.layers
    if layers is None:
        return ""
    panels = (
        f'<div class="panel"><h3>Similarity</h3>{charts.similarity_chart(layers)}</div>'
        f'<div class="panel"><h3>Block influence</h3>{charts.influence_chart(layers)}</div>'
    )
    told = f"Measured on {layers.text}. Influence is 1 - cosine of what enters and leaves a layer (ShortGPT)."
    return _section(
        "The layers of the base",
        f'<p class="soft">{escape(told)}</p><figure><div class="panels">{panels}</div>{POINT}</figure>',
    )


def _entries(findings: Findings, words: Mapping[str, Wording]) -> str:
    entries = ranked(findings)
    if not entries:
        return ""
    heads = [("stack", "ascending"), ("what", "ascending"), ("plan", "ascending"), ("cost", "ascending")]
    for word in words.values():
        scored = "ascending" if word.facts.lower_is_better else "descending"
        heads += [("score", scored), ("minus the base", scored), ("p", "ascending")]
    over = '<th colspan="4"></th>'
    for name, word in words.items():
        told = escape(f"{word.facts.measure}, {word.direction}")
        over += f'<th colspan="3">{escape(name)} <small class="soft">{told}</small></th>'
    head = "".join(
        f'<th data-column="{column}" data-first="{first}"><button type="button">{escape(name)}</button></th>'
        for column, (name, first) in enumerate(heads)
    )
    rows = "\n".join(_row(entry, words) for entry in entries)
    intro = (
        "The best first; a click on a head sorts by it. Brackets are 95% intervals of a stack by itself; "
        f"p is corrected for all {len(entries)}."
    )
    return _section(
        "Every stack",
        f'<p class="soft">{escape(intro)}</p><div class="scroll"><table class="sortable"><thead>'
        f'<tr class="probes">{over}</tr><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>',
    )


def _row(entry: Entry, words: Mapping[str, Wording]) -> str:
    candidate = entry.candidate
    label, plan = candidate.label, str(candidate.plan)
    what = variant_name(candidate.kind, candidate.times, candidate.damp)
    cells = [
        _cell(escape(shortened(label, 40)), label),
        _cell(escape(what), what),
        _cell(f'<code title="{escape(plan)}">{escape(shortened(plan))}</code>', plan, "plan"),
        _cell(f"{entry.cost:.2f}", entry.cost),
    ]
    for name, word in words.items():
        compared = entry.compared.get(name)
        if compared is None:
            cells += ['<td data-v=""></td>'] * 3
            continue
        score, difference, beyond = compared.score, compared.difference, verdict_word(compared)
        perplexity = f"; perplexity {told}" if (told := word.perplexity(score.mean)) else ""
        shown = f"{word.number(score.mean)} <small>({word.reach(score)}{perplexity})</small>"
        moved = f"{word.signed(difference.mean)} <small>({word.signed_reach(difference)})</small>"
        cells += [
            _cell(shown, score.mean),
            _cell(moved, difference.mean, beyond),
            _cell(f"{escape(p_value(compared.p))} {beyond}", compared.p),
        ]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(content: str, value: str | float, style: str = "") -> str:
    key = value if isinstance(value, str) else f"{value:.6g}" if math.isfinite(value) else ""
    kind = f' class="{style}"' if style else ""
    return f'<td{kind} data-v="{escape(key)}">{content}</td>'


def _groups(words: Wording, groups: Mapping[str, Compared]) -> str:
    title = f"{words.facts.name} by group: the best and the base on held-out questions"
    return _section(title, _table(group_rows(groups, words), numeric_from=1))


def _failures(findings: Findings) -> str:
    found = failures(findings)
    if not found:
        return ""
    lines = (
        f"{escape(error)}: {len(plans)} {'stack' if len(plans) == 1 else 'stacks'}, "
        f"<code>{escape(', '.join(plans[:5]))}</code>{' and others' if len(plans) > 5 else ''}"
        for error, plans in found
    )
    return _section("What failed", _list(lines))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _table(rows: Rows, numeric_from: int) -> str:
    head, lines = rows

    def cells(tag: str, line: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if number >= numeric_from else ''}>{escape(cell)}</{tag}>"
            for number, cell in enumerate(line)
        )

    body = "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    table = f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def _resource(name: str) -> str:
    return files("restack.scanning.reporting").joinpath(name).read_text(encoding="utf-8")
