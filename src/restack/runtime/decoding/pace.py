"""How many tokens it pays to draft, told from what drafting and checking have taken so far.

With acceptance a, seconds d a drafted token and c(n) for checking n tokens and drawing one more, a round of n
drafted tokens gives (1 - a^(n+1)) / (1 - a) tokens in n d + c(n) seconds (Leviathan et al. 2023,
arXiv 2211.17192, theorem 3.8). c(0) is a step without a draft.
"""

import statistics
from collections import deque

LONGEST = 8  # tokens drafted at once, at most
REMEMBERED = 9  # times of each kind
FIRST_TRIALS = 2  # rounds that are drafted to see how it goes
GAIN = 1.03  # that is expected of a draft before it is made
PAUSES = (8, 24)  # tokens without a draft, before it is tried anew; then no more in this text
HOPE = 0.95  # acceptance with which a draft must pay to be tried anew
FADING = 0.9  # of what is known of acceptance, a round
RISK = (
    0.04  # of the time that a text is expected to take, that may be spent on a draft that is not known to pay
)
EXPECTED = 100  # tokens, of a text that may be longer


class Pace:
    """Chooses how many tokens to draft next.

    Attributes:
        drafted: tokens, in all.
        accepted: how many of them were kept.
        is_over: nothing will be drafted in this text any more.
    """

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self._tried, self._taken = 2.0, 1.5  # a guess worth two tokens
        self._draft: deque[float] = deque(maxlen=REMEMBERED)
        self._checks: dict[int, deque[float]] = {}
        self._readings: deque[float] = deque(maxlen=REMEMBERED)
        self.begin()

    def begin(self) -> None:
        """Another text begins."""
        self.is_over = False
        self._trials = self._waited = self._pauses = 0

    @property
    def knows_steps(self) -> bool:
        """Whether it is known what a step without a draft takes."""
        return len(self._checks.get(0, ())) >= 2

    def pays_to_begin(self, reading: float, share: float, remaining: int) -> bool:
        """Whether it is worth while to have the draft read the text, which it must before it drafts.

        Args:
            reading: seconds that this took the model.
            share: of the model's visits that the draft makes.
            remaining: tokens that the text may still get.
        """
        step = statistics.median(self._checks[0])
        rest = min(remaining, EXPECTED) * step
        price = statistics.median(self._readings) if self._readings else reading * share
        if self._draft and (best := self._pays(self.acceptance)):
            return price < rest * (1 - self.rate(0, self.acceptance) / self.rate(best, self.acceptance))
        return price < RISK * (reading + rest) and (not self._draft or bool(self._pays(HOPE)))

    def note_reading(self, seconds: float) -> None:
        """Learn what it took to have the draft read a text."""
        self._readings.append(seconds)

    @property
    def acceptance(self) -> float:
        """How often a drafted token was right, of late."""
        return self._taken / self._tried

    def next_length(self) -> int:
        """How many tokens to draft now; 0 for a step without."""
        if self.is_over or not self.knows_steps:
            return 0
        if self._trials < FIRST_TRIALS and (not self._draft or self._pays(HOPE)):
            return 1
        if best := self._pays(self.acceptance):
            self._pauses = 0
            return best
        self._waited += 1
        if self._pauses == len(PAUSES) or not self._pays(HOPE):
            self.is_over = True
        elif self._waited > PAUSES[self._pauses]:
            self._waited, self._pauses = 0, self._pauses + 1
            return 1
        return 0

    def rate(self, length: int, acceptance: float) -> float:
        """Tokens a second that are expected of rounds of this length."""
        a = min(acceptance, 0.999)
        tokens = (1 - a ** (length + 1)) / (1 - a)
        draft = statistics.median(self._draft) if self._draft else 0.0
        return tokens / (length * draft + self._check(length))

    def note(self, length: int, right: int, draft_seconds: float, check_seconds: float) -> None:
        """Learn from a round.

        Args:
            length: tokens that were drafted.
            right: how many first ones of them were kept.
            draft_seconds, check_seconds: what that took, and what the rest of the round.
        """
        self._checks.setdefault(length, deque(maxlen=REMEMBERED)).append(check_seconds)
        if not length:
            return
        self._trials += 1
        self.drafted, self.accepted = self.drafted + length, self.accepted + right
        self._draft.append(draft_seconds / length)
        self._tried = FADING * self._tried + min(right + 1, length)
        self._taken = FADING * self._taken + right

    def _pays(self, acceptance: float) -> int:
        """The length that pays most with this acceptance; 0 if none does."""
        best = max(range(1, LONGEST + 1), key=lambda length: self.rate(length, acceptance))
        return best if self.rate(best, acceptance) > GAIN * self.rate(0, acceptance) else 0

    def _check(self, length: int) -> float:
        """c(length): as it was, or on the line through the two lengths nearest to it that are known."""
        known = {each: statistics.median(times) for each, times in self._checks.items()}
        if length in known:
            return known[length]
        near, *others = sorted(known, key=lambda each: abs(each - length))
        if not others:
            return known[near]
        slope = max((known[near] - known[others[0]]) / (near - others[0]), 0.0)
        return max(known[near] + slope * (length - near), known[0])
