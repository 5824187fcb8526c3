"""The statistics of the model card, against published and hand-computed values."""

from __future__ import annotations

import pytest

from restack.demo.measure import differences, paired, table, wilson


def test_wilson_interval() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_paired_difference() -> None:
    base = [True] * 80 + [False] * 20
    other = [True] * 78 + [False] * 2 + [True] * 10 + [False] * 10
    gain, half, p = paired(base, other)
    assert gain == pytest.approx(0.08)
    assert half == pytest.approx(1.96 * (12 - 64 / 100) ** 0.5 / 100)
    assert p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert paired(base, base) == (0.0, 0.0, 1.0)


def test_tables() -> None:
    right = {"base": {"fact": [True, False] * 50}, "block twice": {"fact": [True] * 100}}
    assert "| fact | 0.04 | 0.50 (0.40-0.60) | 1.00 (0.96-1.00) |" in table(right)
    assert "| mean | | 0.500 | 1.000 |" in table(right)
    assert "| fact | block twice | +0.500 ± 0.098 |" in differences(right)
