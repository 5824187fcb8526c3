"""What is chance and what is not: intervals by bootstrap, and the best of many by sign flips.

All functions take scores of the same questions; a question is what is resampled. Random numbers are seeded:
the same scores give the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 4000
FLIPS = 4000
AT_ONCE = 2**24  # numbers in the largest matrix in between


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n questions and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


def intervals(scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """The mean of each row and its 95% percentile-bootstrap interval over the questions (Efron, 1979).

    Args:
        scores: shape (rows, questions); all rows are of the same questions, and resampled alike.
        resamples: draws of as many questions with replacement.
        seed: of the draws.
    """
    n = scores.shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).T / n  # (n, resamples)
    tail = (1 - LEVEL) / 2
    found: list[Interval] = []
    step = max(1, AT_ONCE // resamples)
    for start in range(0, len(scores), step):
        some = scores[start : start + step]
        low, high = np.quantile(some @ weights, [tail, 1 - tail], axis=1)
        figures = zip(some.mean(axis=1), low, high, strict=True)
        found += [Interval(float(mean), float(a), float(b), n) for mean, a, b in figures]
    return found


def best_of_many(
    gains: np.ndarray, *, two_sided: bool = False, flips: int = FLIPS, seed: int = 0
) -> np.ndarray:
    """p values of the rows' mean gains, corrected for looking at all rows: shape (rows,).

    If a candidate is no better and no worse than the base, the sign of its gain in a question is as likely
    to be the other. The signs of questions are flipped at random, the same for all rows, so that candidates
    that go wrong together stay together; a row's p is how often the best row of all does as well by chance
    (Westfall and Young 1993, the maximum statistic; Nichols and Holmes 2002). The statistic is
    sum(gain) / sqrt(sum(gain^2)), which orders flips as Student's t does.

    Args:
        gains: shape (rows, questions), candidate minus base, positive is better.
        two_sided: gains and losses alike.
        flips: how many; the least p is 1 / (flips + 1).
        seed: of the signs.
    """
    rows, n = gains.shape
    norms = np.sqrt((gains**2).sum(axis=1))
    scaled = gains / np.where(norms > 0, norms, 1)[:, None]  # a row that changes nothing has 0
    shown = scaled.sum(axis=1)
    rng = np.random.default_rng(seed)
    best = np.empty(flips)
    step = max(1, AT_ONCE // max(rows, n))
    for start in range(0, flips, step):
        count = min(step, flips - start)
        signs = rng.integers(0, 2, size=(count, n)) * 2.0 - 1
        found = signs @ scaled.T  # (count, rows)
        best[start : start + count] = (np.abs(found) if two_sided else found).max(axis=1)
    shown = np.abs(shown) if two_sided else shown
    reached = np.sort(best)
    # rounding must not make a flip of all signs to what they were less than what was seen
    beyond = flips - np.searchsorted(reached, shown - 1e-9, side="left")
    p: np.ndarray = (1 + beyond) / (1 + flips)
    return p


def balanced(gains: Sequence[np.ndarray], spreads: Sequence[float]) -> np.ndarray:
    """Gains on several probes as gains on one, in which each counts the same: shape (rows, all questions).

    A question of a probe with n questions, whose scores spread by s, counts 1 / (n s).

    Args:
        gains: of each probe, shape (rows, its questions).
        spreads: of each probe; where it is 0, the largest of them is taken.
    """
    most = max(spreads) or 1.0
    return np.concatenate(
        [part / (part.shape[1] * (spread or most)) for part, spread in zip(gains, spreads, strict=True)],
        axis=1,
    )
