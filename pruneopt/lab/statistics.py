"""Intervals and paired comparisons of right-or-wrong outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 percent Wilson interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def share(outcomes: Sequence[bool]) -> Share:
    """Proportion of True with its Wilson interval (Wilson 1927). Raises ValueError when empty."""
    if len(outcomes) == 0:
        raise ValueError("no outcome was given; a share of nothing is undefined")
    result = binomtest(int(sum(outcomes)), len(outcomes))
    interval = result.proportion_ci(0.95, method="wilson")
    return Share(float(result.statistic), float(interval.low), float(interval.high), len(outcomes))


@dataclass(frozen=True)
class Paired:
    """Difference of two methods on the same samples, with a bootstrap interval and McNemar's exact test."""

    difference: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{100 * self.difference:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired(ours: Sequence[bool], reference: Sequence[bool], draws: int = 2000, seed: int = 0) -> Paired:
    """`ours` minus `reference` per sample: mean, 95 percent percentile bootstrap, exact McNemar p-value.

    Raises ValueError when the two are not of the same samples.
    """
    if len(ours) != len(reference) or len(ours) == 0:
        raise ValueError(f"paired outcomes must be of the same samples, got {len(ours)} and {len(reference)}")
    delta = np.asarray(ours, dtype=float) - np.asarray(reference, dtype=float)
    rng = np.random.default_rng(seed)
    means = delta[rng.integers(0, len(delta), (draws, len(delta)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    won, lost = int((delta > 0).sum()), int((delta < 0).sum())
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Paired(float(delta.mean()), float(low), float(high), p_value)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value), for repeated seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
