"""Intervals are those of scipy; the best of many noisy candidates is no discovery, and a planted one is."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from restack.scanning.statistics import balanced, best_of_many, intervals


def noise(rows, questions, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, questions))


def test_intervals_are_those_of_scipy():
    scores = np.random.default_rng(0).gamma(2.0, size=(3, 60))
    for row, found in zip(scores, intervals(scores, resamples=20000), strict=True):
        theirs = stats.bootstrap((row,), np.mean, n_resamples=20000, method="percentile", rng=1)
        assert found.mean == pytest.approx(row.mean())
        assert found.n == 60
        width = found.high - found.low
        assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
        assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(5)
    samples = (rng.random((400, 80)) < 0.7).astype(float)
    covered = [found.low <= 0.7 <= found.high for found in intervals(samples)]
    assert 0.91 <= np.mean(covered) <= 0.985


def test_p_of_a_single_row_is_that_of_all_flips_of_signs():
    gains = np.array([[0.5, 0.1, 0.9, -0.2, 0.4, 0.3, 0.05, 0.6]])
    flipped = [np.dot(signs, gains[0]) for signs in product((-1, 1), repeat=8)]
    exact = np.mean(np.array(flipped) >= gains.sum() - 1e-12)
    assert best_of_many(gains, flips=40000)[0] == pytest.approx(exact, abs=0.004)
    theirs = stats.permutation_test(
        (gains[0],), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert exact == pytest.approx(theirs.pvalue)


def test_p_over_rows_is_that_of_all_flips_of_signs_of_the_best_row():
    gains = noise(4, 9)
    gains[2] += 0.6
    scaled = gains / np.sqrt((gains**2).sum(axis=1, keepdims=True))
    best = [(scaled @ np.array(signs)).max() for signs in product((-1, 1), repeat=9)]
    exact = [np.mean(np.array(best) >= row.sum() - 1e-12) for row in scaled]
    np.testing.assert_allclose(best_of_many(gains, flips=40000), exact, atol=0.01)
    largest = [np.abs(scaled @ np.array(signs)).max() for signs in product((-1, 1), repeat=9)]
    exact = [np.mean(np.array(largest) >= abs(row.sum()) - 1e-12) for row in scaled]
    np.testing.assert_allclose(best_of_many(gains, two_sided=True, flips=40000), exact, atol=0.01)


def test_many_looks_cost():
    """One gain that would do alone does not among a hundred rows of noise."""
    gains = noise(100, 50, seed=3) * 0.4
    gains[0] = noise(1, 50, seed=4)[0] * 0.4 + 0.15
    assert best_of_many(gains[:1])[0] < 0.05
    assert best_of_many(gains)[0] > 0.2


def test_rows_that_go_together_are_not_counted_as_many():
    one = noise(1, 60, seed=8) * 0.5 + 0.16
    copies = np.repeat(one, 200, axis=0)
    assert best_of_many(copies)[0] == pytest.approx(best_of_many(one)[0], abs=0.01)


def test_a_row_that_changes_nothing_gains_nothing():
    gains = np.zeros((2, 30))
    gains[1] = np.abs(noise(1, 30)[0])
    p = best_of_many(gains)
    assert p[0] > 0.4
    assert p[1] < 0.001


@pytest.mark.parametrize("questions", [40, 200])
@pytest.mark.parametrize("kind", ["right or wrong", "heavy tails"])
def test_noise_has_a_best_row_with_a_small_p_no_more_often_than_it_says(questions, kind):
    """The family-wise error over 300 nulls, the base being as noisy as its candidates."""
    rng = np.random.default_rng(17)
    seen = 0
    for _ in range(300):
        if kind == "right or wrong":
            scores = (rng.random((41, questions)) < 0.8).astype(float)
        else:
            scores = rng.standard_t(2, size=(41, questions))
        p = best_of_many(scores[1:] - scores[0], flips=400, seed=int(rng.integers(10**6)))
        seen += p.min() <= 0.05
    assert seen <= 27  # of 300 at 5%, 15 are expected; more than 27 are seen once in 400


def test_balanced_gains_count_each_probe_the_same():
    """RYS's sum of z: by hand, a gain of one standard deviation on either is worth the same."""
    exact, loss = np.full((1, 10), 0.4), np.full((1, 90), -0.02)
    joined = balanced([exact, loss], [0.4, 0.02])
    assert joined.shape == (1, 100)
    assert joined.sum() == pytest.approx(0, abs=1e-12)
    assert balanced([exact, loss], [0.4, 0.04]).sum() == pytest.approx(0.5)
    assert np.isfinite(balanced([exact, loss], [0.0, 0.0])).all()
