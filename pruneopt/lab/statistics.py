"""Intervals, paired comparisons of right-or-wrong outcomes, quartiles, growth, agreement of rankings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

SHARES = (0.10, 0.25, 0.50)


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


def paired(
    ours: Sequence[bool],
    reference: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Paired:
    """`ours` minus `reference` per sample: mean, 95 percent percentile bootstrap, exact McNemar p-value.

    Samples that share something, such as a picture, are not independent: with `clusters`, one label a sample,
    the bootstrap draws whole clusters.  The p-value knows no clusters.  Raises ValueError when the three are
    not of the same samples.
    """
    if len(ours) != len(reference) or len(ours) == 0:
        raise ValueError(f"paired outcomes must be of the same samples, got {len(ours)} and {len(reference)}")
    delta = np.asarray(ours, dtype=float) - np.asarray(reference, dtype=float)
    rng = np.random.default_rng(seed)
    labels = range(len(delta)) if clusters is None else clusters
    if len(labels) != len(delta):
        raise ValueError(f"{len(labels)} clusters were given for {len(delta)} samples")
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    home = np.array([number[label] for label in labels])
    sums, sizes = np.bincount(home, delta), np.bincount(home)
    drawn = rng.integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    won, lost = int((delta > 0).sum()), int((delta < 0).sum())
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Paired(float(delta.mean()), float(low), float(high), p_value)


@dataclass(frozen=True)
class Change:
    """A mean paired difference with a 95 percent interval, a p-value, and the least difference that one would
    have found in four of five such experiments.
    """

    mean: float
    low: float
    high: float
    p_value: float
    least: float

    def shown(self, times: float = 1.0, digits: int = 1) -> str:
        """Mean and interval, multiplied."""
        mean, low, high = (f"{times * x:+.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def clustered(
    delta: Sequence[float], clusters: Sequence[object], *, draws: int = 4000, seed: int = 0
) -> Change:
    """Paired differences of samples that come in clusters, such as questions about one picture.

    The interval is a percentile bootstrap that draws whole clusters; the p-value flips the signs of whole
    clusters at random, two-sided; the least difference is 2.8 standard errors of the bootstrap (80 percent
    power at the level of 5 percent).  Raises ValueError when there is nothing, or not a cluster for each.
    """
    if len(delta) != len(clusters) or len(delta) == 0:
        raise ValueError(f"every difference needs its cluster, got {len(delta)} and {len(clusters)}")
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    place = np.array([number[cluster] for cluster in clusters])
    total = np.bincount(place, weights=np.asarray(delta, dtype=float))
    size = np.bincount(place)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(total), (draws, len(total)))
    means = total[drawn].sum(1) / size[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    flipped = np.abs(rng.choice([-1.0, 1.0], (draws, len(total))) @ total)
    p_value = (1 + int((flipped >= abs(total.sum()) * (1 - 1e-12)).sum())) / (1 + draws)
    return Change(float(total.sum() / size.sum()), float(low), float(high), p_value, 2.8 * float(means.std()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that may be compared with one level however many there are (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p_values[i]))
        out[i] = worst
    return out


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value), for repeated seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and smallest of repeated measurements."""
    quarter = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q1": quarter[0], "q3": quarter[2], "min": min(values)}


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log seconds on log size with its 95% interval (Student t); NaN interval below 3 points."""
    from scipy.stats import linregress, t

    if len(sizes) < 2:
        return math.nan, math.nan, math.nan
    fit = linregress(np.log(sizes), np.log(seconds))
    slope = float(fit.slope)
    if len(sizes) < 3:
        return slope, math.nan, math.nan
    half = float(t.ppf(0.975, len(sizes) - 2) * fit.stderr)
    return slope, slope - half, slope + half


def agreement(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Spearman, Kendall tau-b and top-share overlap of two importances `[N]`, higher is kept.

    `jaccard_p` is intersection over union of the two top sets, `recall_p` the share of the true one found;
    ties go to the lower index.  Correlations of a constant are NaN: nothing was ranked.
    """
    from scipy.stats import kendalltau, spearmanr

    out = {"spearman": math.nan, "kendall": math.nan}
    if np.ptp(score) > 0 and np.ptp(truth) > 0:
        out = {"spearman": float(spearmanr(score, truth)[0]), "kendall": float(kendalltau(score, truth)[0])}
    for part in SHARES:
        k = max(1, round(part * len(score)))
        mine = set(np.argsort(-score, kind="stable")[:k].tolist())
        best = set(np.argsort(-truth, kind="stable")[:k].tolist())
        both = len(mine & best)
        out[f"jaccard_{round(part * 100)}"] = both / len(mine | best)
        out[f"recall_{round(part * 100)}"] = both / k
    return out
