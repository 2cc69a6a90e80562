"""Agreement of rankings, growth exponents, and honest timing."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

T = TypeVar("T")
SHARES = (0.10, 0.25, 0.50)


def agreement(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Spearman, Kendall tau-b and top-share overlap of two importances `[N]`, higher is kept.

    `jaccard_p` is intersection over union of the two top sets, `recall_p` the share of the true one found;
    ties go to the lower index.  Correlations of a constant are NaN: nothing was ranked.
    """
    from scipy.stats import kendalltau, spearmanr

    out = {"spearman": math.nan, "kendall": math.nan}
    if np.ptp(score) > 0 and np.ptp(truth) > 0:
        out = {"spearman": float(spearmanr(score, truth)[0]), "kendall": float(kendalltau(score, truth)[0])}
    for share in SHARES:
        k = max(1, round(share * len(score)))
        mine = set(np.argsort(-score, kind="stable")[:k].tolist())
        best = set(np.argsort(-truth, kind="stable")[:k].tolist())
        both = len(mine & best)
        out[f"jaccard_{round(share * 100)}"] = both / len(mine | best)
        out[f"recall_{round(share * 100)}"] = both / k
    return out


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log seconds on log size with its 95% interval (Student t); NaN interval below 3 points."""
    from scipy.stats import linregress, t

    if len(sizes) < 2:
        return math.nan, math.nan, math.nan
    fit = linregress(np.log(sizes), np.log(seconds))
    if len(sizes) < 3:
        return float(fit.slope), math.nan, math.nan
    half = float(t.ppf(0.975, len(sizes) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


@dataclass(frozen=True)
class Timing:
    """Seconds of the first run and of the warm ones, and peak memory of the first above what was there."""

    cold: float
    runs: tuple[float, ...]
    peak_mib: float

    @property
    def p50(self) -> float:
        return float(np.percentile(self.runs, 50))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.runs, 95))


def _resident() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0


def _trim() -> None:
    """Hand freed memory back first, or glibc would serve the next run from it and nothing would be seen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], T], repeats: int = 5, budget: float = 3.0) -> tuple[T, Timing]:
    """Run once cold with a memory watch, then up to `repeats` times warm within about `budget` seconds.

    A job whose cold run takes longer than the whole budget is not run again.
    """
    _trim()
    base, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _resident() - base)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = time.perf_counter()
    result: Any = run()
    synchronise()
    cold = time.perf_counter() - begin
    done.set()
    watcher.join()
    runs: list[float] = [cold] if cold > budget else []
    while not runs or (len(runs) < repeats and sum(runs) + runs[-1] < budget):
        begin = time.perf_counter()
        result = run()
        synchronise()
        runs.append(time.perf_counter() - begin)
    return result, Timing(cold, tuple(runs), max(peak[0], 0) / 2**20)


def interleaved(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Best seconds of two jobs run in turns, so that a busy machine disturbs both alike."""
    first(), second()
    one: list[float] = []
    two: list[float] = []
    for _ in range(repeats):
        for job, times in ((first, one), (second, two)):
            begin = time.perf_counter()
            job()
            synchronise()
            times.append(time.perf_counter() - begin)
    return min(one), min(two)


def digest(*what: object) -> str:
    """8 hexadecimal digits of what a record hangs on, for its file name."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


def wide() -> Console:
    """A console that does not wrap tables when the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=170)
