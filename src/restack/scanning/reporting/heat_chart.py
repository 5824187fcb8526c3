"""The heat map of a probe as inline SVG: a cell tells its block's score to who points at it."""

from html import escape

from restack.scanning.findings import Compared, Entry, Findings
from restack.scanning.reporting.heat_map import MOST_TOLD, brief, place_of, ticks
from restack.scanning.reporting.order import Variant, best_beyond_chance, limit, with_probe
from restack.scanning.reporting.svg import BASE, box, chart, key, label, mark, path, swatch, upright
from restack.scanning.reporting.wording import Wording, p_equals, variant_name, verdict_word

LEVELS = 6  # shades of each colour
SIDE = 400.0  # of a panel


def shade(compared: Compared, end: float) -> str:
    """The style class of a gain: b1 to b6 are better, w1 to w6 worse, g1 to g6 not beyond chance."""
    level = 1 + min(LEVELS - 1, int(abs(compared.gain) / end * LEVELS))
    kind = {"better": "b", "worse": "w"}.get(verdict_word(compared), "g")
    return f"{kind}{level}"


def tip(entry: Entry, compared: Compared, words: Wording) -> str:
    """All that is known of a stack on a probe, on a line."""
    candidate, score, difference = entry.candidate, compared.score, compared.difference
    what = f" {variant_name(candidate.kind, candidate.times, candidate.damp)}" if candidate.block else ""
    perplexity = f", perplexity {told}" if (told := words.perplexity(score.mean)) else ""
    beyond = verdict_word(compared) or "not beyond chance"
    return "; ".join(
        [
            f"{candidate.label}{what}: {words.number(score.mean)} ({words.reach(score)}){perplexity}",
            f"minus the base {words.signed(difference.mean)} ({words.signed_reach(difference)})",
            f"n = {score.n}",
            f"corrected {p_equals(compared.p)}, {beyond}",
            f"cost {entry.cost:.2f}",
        ]
    )


def base_tip(findings: Findings, words: Wording) -> str:
    """The base's score on a probe."""
    base = findings.base.compared.get(words.facts.name)
    return "base" if base is None else f"base: {words.score(base.score.mean)} ({words.reach(base.score)})"


def heat_chart(findings: Findings, variant: Variant, words: Wording) -> str:
    """A panel: a cell for each block, its start downwards and its end rightwards."""
    name, depth = words.facts.name, findings.depth
    cell = SIDE / (depth + 1)
    end, best = limit(findings, name), best_beyond_chance(findings, name)
    known = with_probe(variant.entries, name)
    parts = []
    for entry, compared in known:
        i, j = place_of(entry.candidate)
        style = shade(compared, end)
        parts.append(mark("rect", tip(entry, compared, words), style, _square(i, j, cell)))
        if depth <= MOST_TOLD:
            parts.append(_inside(brief(compared.gain), i, j, cell, style))
    scored = {id(entry) for entry, _ in known}
    for entry in variant.entries:
        if id(entry) not in scored:
            told = f"{entry.candidate.label}: {entry.error or 'no score'}"
            parts.append(_cross(*place_of(entry.candidate), cell, told))
    dot = max(5.0, min(12.0, cell * 0.5))
    first, last = cell / 2, cell * (depth - 0.5)
    parts.append(path("zero", f"M{first:.1f} {first:.1f}L{last:.1f} {last:.1f}"))
    square = box(first - dot / 2, first - dot / 2, dot, dot)
    parts.append(mark("rect", base_tip(findings, words), "base", square))
    if best is not None and any(best is entry for entry in variant.entries):
        grown = 0.0 if depth <= MOST_TOLD else cell / 2  # a cell of a deep model is too small to be found
        parts.append(f'<rect class="best" {_square(*place_of(best.candidate), cell, grown)}/>')
    parts += _axes(depth, cell)
    return chart(-34, -4, 440, cell * depth + 42, parts, f"{name}, {variant.name}")


def heat_key(findings: Findings, words: Wording) -> str:
    """What the colours of a heat map mean."""
    name = words.facts.name
    end, best = limit(findings, name), best_beyond_chance(findings, name)
    base = findings.base.compared.get(name)
    levels = range(1, LEVELS + 1)
    colours = [*(f"w{level}" for level in reversed(levels)), *(f"b{level}" for level in levels)]
    at_base = "" if base is None else f"; base {words.number(base.score.mean)} in the middle"
    scale = "how far below the base" if words.facts.lower_is_better else "gain over the base"
    parts = [
        f"worse {_ramp(colours)} better ({scale}, {-end:+.2g} to {end:+.2g} and beyond{at_base})",
        f"{_ramp([f'g{level}' for level in levels])} not beyond chance",
        BASE,
    ]
    if best is not None:
        gain = words.signed(best.compared[name].gain)
        frame = swatch(14, ['<rect class="best" x="1" y="1" width="12" height="10"/>'])
        parts.append(f"{frame} largest gain: {escape(best.candidate.label)}, {gain}")
    return key(parts)


def _ramp(styles: list[str]) -> str:
    rects = (f'<rect class="{style}" {box(14 * n, 0, 14, 12)}/>' for n, style in enumerate(styles))
    return swatch(14 * len(styles), rects)


def _square(i: int, j: int, cell: float, grown: float = 0.0) -> str:
    gap = 0.6 if cell > 10 and not grown else 0.0
    side = cell - gap + 2 * grown
    return box(j * cell - grown, i * cell - grown, side, side)


def _inside(told: str, i: int, j: int, cell: float, style: str) -> str:
    size = min(12.0, cell * 1.35 / max(4, len(told)))
    shown = "hi" if style[0] != "g" and int(style[1]) >= 4 else "lo"
    at = f'x="{(j + 0.5) * cell:.1f}" y="{(i + 0.5) * cell:.1f}"'
    return f'<text class="in {shown}" {at} style="font-size:{size:.1f}px">{told}</text>'


def _cross(i: int, j: int, cell: float, told: str) -> str:
    x, y, r = (j + 0.5) * cell, (i + 0.5) * cell, min(5.0, cell * 0.3)
    d = f'd="M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"'
    return mark("path", told, "fail", d)


def _axes(depth: int, cell: float) -> list[str]:
    bottom = cell * depth
    at = {tick: (tick + 0.5) * cell for tick in ticks(depth)}
    return [
        path("axis", f"M-1 0V{bottom:.1f}H{cell * (depth + 1):.1f}"),
        *(label(place, bottom + 14, str(tick)) for tick, place in at.items()),
        *(label(-6, place + 4, str(tick), "end") for tick, place in at.items() if tick < depth),
        label(SIDE / 2, bottom + 32, "end of the block, j (not in it)"),
        upright(-24, bottom / 2, "start, i"),
    ]
