"""Intervals against closed forms."""

from __future__ import annotations

import math

import pytest

from pruneopt.eval.metrics import mean_and_spread, paired, share


def test_wilson_interval_against_its_formula() -> None:
    outcomes = [True] * 17 + [False] * 8
    n, p, z = 25, 17 / 25, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    result = share(outcomes)
    assert result.value == pytest.approx(p)
    assert (result.low, result.high) == pytest.approx((middle - half, middle + half))
    assert share([True] * 5).high == 1 and share([True] * 5).low < 1


def test_paired_difference_and_exact_mcnemar() -> None:
    ours = [True] * 9 + [False] * 1 + [True] * 10
    theirs = [False] * 9 + [True] * 1 + [True] * 10
    result = paired(ours, theirs)
    assert result.difference == pytest.approx(8 / 20)
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert result.low < 8 / 20 < result.high
    same = paired(ours, ours)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired(ours, theirs, seed=1) == paired(ours, theirs, seed=1)


def test_nothing_is_not_a_result() -> None:
    with pytest.raises(ValueError, match="no outcome"):
        share([])
    with pytest.raises(ValueError, match="same samples"):
        paired([True], [True, False])


def test_spread_of_seeds() -> None:
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, math.sqrt(2)))
    assert math.isnan(mean_and_spread([1.0])[1])
