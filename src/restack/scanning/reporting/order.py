"""What of the findings is shown, and in which order: the best first, the panels of a heat map, the front."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from restack.scanning.findings import Compared, Entry, Findings
from restack.scanning.reporting.wording import variant_name
from restack.scanning.statistics import Interval

NORMAL = 3.92  # standard errors in a 95% interval
FEW = 12  # stacks, none of which is left out of a picture


@dataclass(frozen=True, slots=True)
class Variant:
    """Candidates that do the same to different blocks: a panel of a heat map.

    Attributes:
        name: what they do.
        entries: in the order of the findings, failed ones among them.
    """

    name: str
    entries: tuple[Entry, ...]

    @property
    def has_blocks(self) -> bool:
        return self.entries[0].candidate.block is not None


def variants(findings: Findings) -> list[Variant]:
    """The candidates by what they do: repeats first as the scan had them, then those that leave out."""
    found: dict[tuple[bool, str], list[Entry]] = {}
    for entry in findings.entries:
        candidate = entry.candidate
        name = variant_name(candidate.kind, candidate.times, candidate.damp)
        found.setdefault((candidate.times < 1, name), []).append(entry)
    return [Variant(key[1], tuple(found[key])) for key in sorted(found, key=lambda key: key[0])]


def ranked(findings: Findings) -> list[Entry]:
    """The candidates that have scores, by the evidence that they gain, and those that lose by how little.

    The verdict's best is the first, whatever the rounding of its evidence.
    """
    known = [entry for entry in findings.entries if entry.error is None]
    best = findings.verdict.best
    first = best.candidate.plan if best is not None else None

    objective = findings.verdict.objective

    def place(entry: Entry) -> tuple[bool, float, float, float]:
        balance = _balance(findings, entry)
        alone = entry.compared.get(objective[0]) if len(objective) == 1 else None
        p = alone.p if alone is not None and alone.gain > 0 else 1.0
        return entry.candidate.plan != first, p, -max(0.0, balance.evidence), -balance.gain

    return sorted(known, key=place)


def worst(findings: Findings, count: int) -> list[Entry]:
    """The candidates that lose most on the objective, the worst first; none that lose nothing."""
    known = [entry for entry in findings.entries if entry.error is None]
    lost = {id(entry): _balance(findings, entry).gain for entry in known}
    return sorted((e for e in known if lost[id(e)] < 0), key=lambda entry: lost[id(entry)])[:count]


def with_probe(entries: Iterable[Entry], probe: str) -> list[tuple[Entry, Compared]]:
    """Those that have a finite score on a probe, with it."""
    pairs = [(entry, entry.compared[probe]) for entry in entries if probe in entry.compared]
    return [(entry, compared) for entry, compared in pairs if math.isfinite(compared.gain)]


def best_beyond_chance(findings: Findings, probe: str) -> Entry | None:
    """The block that gains most on a probe, among those that are better beyond chance; None if none is.

    Of several that gain as much, the one that the probe's verdict names, or else the cheapest.
    """
    chosen = findings.by_probe.get(probe, findings.verdict).best
    blocks = [entry for entry in findings.entries if entry.candidate.block is not None]
    better = [
        (entry, compared)
        for entry, compared in with_probe(blocks, probe)
        if compared.is_significant and compared.gain > 0
    ]
    if not better:
        return None
    return max(better, key=lambda pair: (pair[1].gain, pair[0] is chosen, -pair[0].cost))[0]


def limit(findings: Findings, probe: str) -> float:
    """The gain at which a probe's colours end: the same for all its panels, and for losses.

    It is the 98th percentile of repeated blocks' gains and losses, so that a few that ruin the model do not
    make all others pale; of all candidates, where no block is repeated. What is sought is what helps, so it
    is no more than 2.5 times the largest gain beyond chance or, where there is none, the 75th percentile.
    """
    known = with_probe(findings.entries, probe)
    repeats = [compared for entry, compared in known if entry.candidate.times > 1]
    of = repeats or [compared for _, compared in known]
    sizes = np.array([abs(compared.gain) for compared in of])
    if not sizes.any():
        return 1.0
    helping = max((compared.gain for compared in of if compared.is_significant), default=0.0)
    sought = 2.5 * helping if helping > 0 else float(np.percentile(sizes, 75))
    wide = float(np.percentile(sizes, 98))
    return _round_up(min(wide, sought) or float(sizes.max()))


def front(points: Sequence[tuple[float, float, bool]]) -> list[int]:
    """Which stacks have no other that is both cheaper and better: the front, from cheap to dear.

    Scores are noisy, and the best of many is by chance above the base. So a stack that costs as much as the
    base or more is on the front only if it is better than it beyond chance.

    Args:
        points: cost (1 is the base's), gain over the base, and whether that is beyond chance.

    Returns:
        Positions in `points`.
    """
    able = [
        number
        for number, (cost, gain, is_significant) in enumerate(points)
        if cost < 1 or (gain > 0 and is_significant)
    ]
    found: list[int] = []
    highest = -math.inf
    for number in sorted(able, key=lambda number: (points[number][0], -points[number][1])):
        gain = points[number][1]
        if gain > highest:
            found.append(number)
            highest = gain
    return found


def front_line(points: Sequence[tuple[float, float, bool]]) -> list[tuple[float, float]]:
    """The line of a front: cost and gain of its points, and of the base unless a cheaper one is better."""
    line = [(cost, gain) for cost, gain, _ in points]
    return line if any(cost <= 1 and gain > 0 for cost, gain in line) else sorted([*line, (1.0, 0.0)])


def lowest(findings: Findings, probe: str) -> float:
    """Where a picture of gains ends below: under all of them, or above the many that ruin the model."""
    gains = [compared.gain for _, compared in with_probe(findings.entries, probe)]
    worst, enough = min([*gains, 0.0]), max(3 * max([*gains, 0.0]), 1.5 * limit(findings, probe))
    if len(gains) > FEW and -worst > 1.5 * enough:
        return -enough
    return min(worst, -0.2 * enough) * 1.06


def file_names(probes: Iterable[str]) -> dict[str, str]:
    """A name for a file of each probe, without what file systems do not take; no two the same."""
    found: dict[str, str] = {}
    for probe in probes:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", probe).strip("-.")[:60] or "probe"
        taken, number = {*map(str.lower, found.values())}, 2
        unique = name
        while unique.lower() in taken:
            unique, number = f"{name}-{number}", number + 1
        found[probe] = unique
    return found


@dataclass(frozen=True, slots=True)
class _Balance:
    gain: float
    evidence: float


def _balance(findings: Findings, entry: Entry) -> _Balance:
    """The gain on the objective, and the statistic that the scan compares, as `statistics.balanced` has them.

    It is read off the intervals, which is enough for an order of rows.
    """
    names = [name for name in findings.verdict.objective if name in entry.compared]
    spreads = [_deviation(base.score) for n in names if (base := findings.base.compared.get(n)) is not None]
    most = max(spreads, default=1.0) or 1.0
    weights = (
        [1 / (spread or most) for spread in spreads] if len(spreads) == len(names) else [1.0] * len(names)
    )
    total, squares = 0.0, 0.0
    for name, weight in zip(names, weights, strict=True):
        compared = entry.compared[name]
        variance = ((compared.difference.high - compared.difference.low) / NORMAL) ** 2
        total += weight * compared.gain
        squares += weight**2 * (variance + compared.gain**2 / compared.difference.n)
    if not (math.isfinite(total) and math.isfinite(squares)):
        return _Balance(-math.inf, -math.inf)
    return _Balance(total, total / math.sqrt(squares) if squares > 0 else 0.0)


def _round_up(number: float) -> float:
    power = 10.0 ** math.floor(math.log10(number))
    return next(step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= number * 0.999) * power


def _deviation(interval: Interval) -> float:
    return (interval.high - interval.low) / NORMAL * math.sqrt(interval.n)
