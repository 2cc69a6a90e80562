"""The clock of every measurement: wall and processor seconds, warm runs, peak memory, jobs in turns.

Two other places look at the time, for reasons of their own: `pruneopt.pruner.Clock` says in the report of a
run what each step of a selection took, and `pruneopt.models.timing` hooks the parts of a model.  Solvers
report their own seconds.  What a benchmark compares is measured here.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class Stopwatch:
    """Seconds since it was made; starting and reading wait for the device.

    `processor` seconds do not suffer from other programs on a busy machine (single-threaded work only).
    """

    def __init__(self) -> None:
        synchronise()
        self._wall, self._processor = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        synchronise()
        return time.perf_counter() - self._wall

    @property
    def processor(self) -> float:
        synchronise()
        return time.process_time() - self._processor


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

    def record(self) -> dict[str, float]:
        """The numbers as records name them."""
        return {
            "seconds_cold": self.cold,
            "seconds_p50": self.p50,
            "seconds_p95": self.p95,
            "peak_mib": self.peak_mib,
        }


def timed(run: Callable[[], T], *, repeats: int = 5, budget: float = 3.0) -> tuple[T, Timing]:
    """Run once cold with a memory watch, then up to `repeats` times warm within about `budget` seconds.

    A job whose cold run takes longer than the whole budget is not run again.
    """
    # Hand freed memory back first, or glibc would serve the next run from it and nothing would be seen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    base, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _resident() - base)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = Stopwatch()
    result: Any = run()
    cold = started.wall
    done.set()
    watcher.join()
    runs: list[float] = [cold] if cold > budget else []
    while not runs or (len(runs) < repeats and sum(runs) + runs[-1] < budget):
        started = Stopwatch()
        result = run()
        runs.append(started.wall)
    return result, Timing(cold, tuple(runs), max(peak[0], 0) / 2**20)


def turns(jobs: Sequence[Callable[[], Any]], *, repeats: int) -> list[list[float]]:
    """Seconds of each job in each of `repeats` turns, so that a busy machine disturbs all alike.

    One more turn comes first and does not count: what is compiled or loaded on use is there afterwards.
    """
    for job in jobs:
        job()
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(repeats):
        for job, into in zip(jobs, times, strict=True):
            started = Stopwatch()
            job()
            into.append(started.wall)
    return times


def interleaved(first: Callable[[], Any], second: Callable[[], Any], *, repeats: int) -> tuple[float, float]:
    """Best seconds of two jobs run in turns."""
    one, two = turns((first, second), repeats=repeats)
    return min(one), min(two)


def processor_in_turns(
    first: Callable[[], Any], second: Callable[[], Any], *, seconds: float
) -> tuple[float, float, int]:
    """Best processor seconds of two jobs run in turns for about that many seconds, and the number of turns.

    At least three turns; a warm-up of both comes first.
    """
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    while len(times[0]) < 3 or sum(map(sum, times)) < seconds:
        for job, into in zip((first, second), times, strict=True):
            started = Stopwatch()
            job()
            into.append(started.processor)
    return min(times[0]), min(times[1]), len(times[0])


def processor_seconds(job: Callable[[], Any], *, repeats: int) -> float:
    """Median processor seconds of a job."""
    times = []
    for _ in range(max(1, repeats)):
        started = Stopwatch()
        job()
        times.append(started.processor)
    return statistics.median_high(times)


def synchronise() -> None:
    """Wait for what was sent to the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _resident() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0
