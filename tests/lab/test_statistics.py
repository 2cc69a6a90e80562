"""Intervals against closed forms and against the exact distribution they approximate."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from pruneopt.lab.statistics import (
    agreement,
    clustered,
    fit_exponent,
    holm,
    mean_and_spread,
    paired,
    quartiles,
    share,
)  # fmt: skip

Z = 1.959963984540054  # 97.5 percent of the normal distribution


def test_wilson_interval_against_its_formula() -> None:
    outcomes = [True] * 17 + [False] * 8
    n, p = 25, 17 / 25
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    result = share(outcomes)
    assert result.value == pytest.approx(p) and result.count == 25
    assert (result.low, result.high) == pytest.approx((middle - half, middle + half))
    assert str(result) == f"68.0 [{100 * (middle - half):.1f}, {100 * (middle + half):.1f}]"
    assert share([True] * 5).high == 1
    assert share([True] * 5).low == pytest.approx(1 / (1 + Z * Z / 5))


def test_paired_difference_and_exact_mcnemar() -> None:
    ours = [True] * 9 + [False] * 1 + [True] * 10
    theirs = [False] * 9 + [True] * 1 + [True] * 10
    result = paired(ours, theirs)
    assert result.difference == pytest.approx(8 / 20)
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    other = paired(theirs, ours)
    assert other.difference == pytest.approx(-8 / 20) and other.p_value == result.p_value
    assert (other.low, other.high) == pytest.approx((-result.high, -result.low), abs=0.06)
    same = paired(ours, ours)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_clusters_are_drawn_whole() -> None:
    """Copies of a sample add nothing: the interval is that of one sample a cluster."""
    ours, theirs = [True, False, True, True, False, True], [False, True, False, True, False, True]
    one = paired(ours, theirs, draws=500, seed=2)
    labels = [name for name in "abcdef" for _ in range(5)]
    sides = [x for x in ours for _ in range(5)], [x for x in theirs for _ in range(5)]
    many = paired(*sides, clusters=labels, draws=500, seed=2)
    assert (many.difference, many.low, many.high) == (one.difference, one.low, one.high)
    alone = paired(*sides, draws=500)
    assert alone.high - alone.low < many.high - many.low
    with pytest.raises(ValueError, match="2 clusters were given for 6 samples"):
        paired(ours, theirs, clusters=["a", "b"])


def test_clusters_of_unlike_sizes_weigh_by_their_samples() -> None:
    ours, theirs = [True] * 9 + [False], [False] * 9 + [True]
    found = paired(ours, theirs, clusters=["a"] * 9 + ["b"], draws=4000)
    assert found.difference == pytest.approx(0.8)
    assert (found.low, found.high) == (-1, 1)  # one cluster drawn twice, a quarter of the time each


def exact_bootstrap(delta: np.ndarray) -> np.ndarray:
    """Probability of every sum from -n to n of n draws with replacement from `delta` of -1, 0 and 1."""
    step = np.array([(delta == value).mean() for value in (-1, 0, 1)])
    out = np.ones(1)
    for _ in range(len(delta)):
        out = np.convolve(out, step)
    return out


@pytest.mark.parametrize(("won", "lost", "equal"), [(30, 10, 60), (5, 25, 170), (80, 0, 20)])
def test_the_bootstrap_interval_holds_95_percent(won: int, lost: int, equal: int) -> None:
    """Of the exact bootstrap distribution 2.5 percent lie on either side, within what 20,000 draws allow."""
    ours = [True] * won + [False] * lost + [True] * equal
    theirs = [False] * won + [True] * lost + [True] * equal
    result = paired(ours, theirs, draws=20_000, seed=3)
    n = len(ours)
    chance = exact_bootstrap(np.array(ours, dtype=int) - np.array(theirs, dtype=int))
    sums = np.arange(-n, n + 1) / n
    for below, at in ((sums < result.low - 1e-9, result.low), (sums > result.high + 1e-9, result.high)):
        step = chance[np.abs(sums - at) < 1e-9].sum()  # the mass at the end itself
        assert chance[below].sum() <= 0.025 + 0.004 <= chance[below].sum() + step + 0.008


def test_the_bootstrap_is_drawn_by_its_seed() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (rng.random(173) < share for share in (0.7, 0.5))
    runs = {seed: paired(ours, theirs, draws=50, seed=seed) for seed in range(5)}
    assert {seed: paired(ours, theirs, draws=50, seed=seed) for seed in range(5)} == runs
    assert len({(r.low, r.high) for r in runs.values()}) == 5
    assert len({(r.difference, r.p_value) for r in runs.values()}) == 1


def test_nothing_is_not_a_result() -> None:
    with pytest.raises(ValueError, match="no outcome"):
        share([])
    with pytest.raises(ValueError, match="same samples"):
        paired([True], [True, False])


def test_spread_of_seeds() -> None:
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, math.sqrt(2)))
    assert math.isnan(mean_and_spread([1.0])[1])


def test_agreement_against_hand_computed_values() -> None:
    truth = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4])
    assert (
        agreement(truth, truth)["kendall"] == pytest.approx(1) and agreement(truth, truth)["jaccard_50"] == 1
    )
    swapped = truth.copy()
    swapped[[4, 5]] = swapped[[5, 4]]  # ranks 5 and 6 change places
    found = agreement(swapped, truth)
    assert found["kendall"] == pytest.approx(1 - 2 / 45)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (10 * 99))
    assert found["recall_50"] == pytest.approx(4 / 5) and found["jaccard_50"] == pytest.approx(4 / 6)
    flat = agreement(np.zeros(10), truth)
    assert (
        math.isnan(flat["spearman"]) and flat["recall_50"] == 1
    )  # ties: lower index, which is the truth here


def test_exponent_fit_recovers_a_power() -> None:
    sizes = [64, 144, 256, 576, 1024]
    slope, low, high = fit_exponent(sizes, [1e-6 * n**2.4 for n in sizes])
    assert slope == pytest.approx(2.4) and low == pytest.approx(2.4) and high == pytest.approx(2.4)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        noisy = [1e-6 * n**2.0 * math.exp(0.2 * rng.standard_normal()) for n in sizes]
        _, low, high = fit_exponent(sizes, noisy)
        inside += low <= 2.0 <= high
    assert 180 <= inside <= 199  # about 95%
    assert math.isnan(fit_exponent([1, 2], [1, 2])[1])


def test_quartiles_of_repeats() -> None:
    assert quartiles([3.0, 1.0, 2.0]) == {"median": 2, "q1": 1, "q3": 3, "min": 1}
    assert quartiles([7.0]) == {"median": 7, "q1": 7, "q3": 7, "min": 7}


def test_a_clustered_change_is_that_of_whole_clusters() -> None:
    """Copies of a cluster add nothing: four equal questions about each picture say what one says."""
    delta = [0.5, -0.25, 1.0, 0.0, 0.75, -0.5, 0.25, 1.0]
    once = clustered(delta, range(8))
    four = clustered([d for d in delta for _ in range(4)], [c for c in range(8) for _ in range(4)])
    assert four == once
    alone = clustered([d for d in delta for _ in range(4)], range(32))
    assert alone.high - alone.low < 0.7 * (once.high - once.low) and alone.mean == once.mean
    assert once.mean == pytest.approx(np.mean(delta))
    error = np.std(delta) / math.sqrt(8)
    assert once.least == pytest.approx(2.8 * error, rel=0.05)
    assert once.low == pytest.approx(once.mean - Z * error, abs=0.06)
    assert once.shown(100) == f"{100 * once.mean:+.1f} [{100 * once.low:+.1f}, {100 * once.high:+.1f}]"


def test_the_p_value_of_a_change_is_that_of_all_flips_of_signs() -> None:
    delta = [1.0, 2.0, 0.5, -0.25, 1.5, 0.75, -0.5, 1.25]
    sums = [sum(s * d for s, d in zip(signs, delta, strict=True)) for signs in product((1, -1), repeat=8)]
    exact = sum(abs(s) >= sum(delta) for s in sums) / len(sums)
    assert clustered(delta, range(8), draws=20_000).p_value == pytest.approx(exact, abs=0.005)
    assert clustered([0.0] * 5, range(5)).p_value == 1
    with pytest.raises(ValueError, match="every difference needs its cluster"):
        clustered([1.0], [])


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []
