"""Numbers in words: as many digits as are known, differences whose sign nobody misreads, short names."""

import math
from dataclasses import dataclass
from statistics import median

from restack.scanning.candidates import BEAM, BLOCK, SKIP, Candidate
from restack.scanning.findings import Compared, Findings, ProbeFacts
from restack.scanning.statistics import Interval

LONGEST_SPEC = 60  # characters that a sentence can take


@dataclass(frozen=True, slots=True)
class Wording:
    """How the numbers of a probe are written.

    Attributes:
        facts: of the probe.
        decimals: of its scores; so many that an interval has two digits.
    """

    facts: ProbeFacts
    decimals: int

    def number(self, value: float) -> str:
        """A score."""
        return f"{self._rounded(value):.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """A difference of scores, or a gain."""
        return f"{self._rounded(value):+.{self.decimals}f}"

    def reach(self, interval: Interval) -> str:
        """The ends of a score's interval."""
        return f"{self.number(interval.low)} to {self.number(interval.high)}"

    def signed_reach(self, interval: Interval) -> str:
        """The ends of a difference's interval."""
        return f"{self.signed(interval.low)} to {self.signed(interval.high)}"

    def score(self, value: float) -> str:
        """A score with its perplexity, if it has one."""
        told = self.perplexity(value)
        return self.number(value) + (f" (perplexity {told})" if told else "")

    def perplexity(self, loss: float) -> str:
        """Of a probe that measures losses; nothing of others."""
        if not self.facts.measure.startswith("loss") or not math.isfinite(loss):
            return ""
        value = math.exp(min(loss, 700))
        return f"{value:#.4g}" if value < 1000 else f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"

    def moved(self, difference: Interval) -> str:
        """A difference and its interval, so that nobody takes a lower loss for a loss.

        +0.045 (95% interval +0.012 to +0.078); 0.045 lower (95% interval 0.078 lower to 0.012 lower) where
        lower is better.
        """
        if not self.facts.lower_is_better:
            return f"{self.signed(difference.mean)} (95% interval {self.signed_reach(difference)})"
        ends = f"{self.sided(difference.low)} to {self.sided(difference.high)}"
        return f"{self.sided(difference.mean)} (95% interval {ends})"

    def sided(self, difference: float) -> str:
        """0.045 lower."""
        side = "" if self._rounded(difference) == 0 else " lower" if difference < 0 else " higher"
        return self.number(abs(difference)) + side

    def gain_reach(self, compared: Compared) -> tuple[float, float]:
        """The 95% interval of a gain: of the difference, positive where the candidate is better."""
        low, high = compared.difference.low, compared.difference.high
        return (-high, -low) if self.facts.lower_is_better else (low, high)

    @property
    def direction(self) -> str:
        """Which scores are better, for heads of tables."""
        return "lower is better" if self.facts.lower_is_better else "higher is better"

    def _rounded(self, value: float) -> float:
        return round(value, self.decimals) + 0.0  # no -0.000


def wordings(findings: Findings) -> dict[str, Wording]:
    """How the numbers of each probe are written, by its name."""
    return {facts.name: Wording(facts, _decimals(findings, facts.name)) for facts in findings.probes}


def verdict_word(compared: Compared) -> str:
    """Whether a difference is beyond chance, and which way: better, worse or nothing."""
    if not compared.is_significant:
        return ""
    return "better" if compared.gain > 0 else "worse"


def p_value(p: float) -> str:
    """0.42, 0.012, < 0.001."""
    if not p >= 0.001:
        return "< 0.001" if p < 0.001 else "unknown"
    return f"{p:.2f}" if p >= 0.0995 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """P = 0.42, p < 0.001."""
    told = p_value(p)
    return f"p {told}" if told.startswith("<") else f"p = {told}"


def variant_name(kind: str, times: int, damp: float) -> str:
    """What a group of candidates does: twice; 3 times, damp 0.5; left out; as named."""
    if kind == SKIP:
        return "left out"
    if kind != BLOCK:
        return "composed" if kind == BEAM else "as named"
    often = "twice" if times == 2 else f"{times} times"
    return often + (f", damp {damp:g}" if damp != 1 else "")


def shortened(text: str, most: int = LONGEST_SPEC) -> str:
    """A text without its middle, if it is long."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def named(candidate: Candidate) -> str:
    """A candidate in a sentence: its spec, unless that is long and there is a shorter name."""
    spec = str(candidate.plan)
    return spec if len(spec) <= LONGEST_SPEC else shortened(candidate.label)


def scored(findings: Findings) -> int:
    """How many candidates have scores."""
    return sum(entry.error is None for entry in findings.entries)


def duration(seconds: float) -> str:
    """4.2 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _decimals(findings: Findings, probe: str) -> int:
    compared = [entry.compared[probe] for entry in findings.entries if probe in entry.compared]
    widths = [(c.difference.high - c.difference.low) / 2 for c in compared]
    known = [width for width in widths if 0 < width < math.inf]
    if not known:
        return 3
    width = median(known)
    return 1 if width >= 1 else min(6, max(3, 1 - math.floor(math.log10(width))))
