"""Swap improvement of any subset."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.errors import SpecError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind
from pruneopt.problems.kinds._objectives import subset_value
from pruneopt.problems.kinds._swaps import swap_gains
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SUBSET_KINDS, SubsetProblem

STARTS = {
    "top_k": "stable_top_k",
    "quota": "quota_top_k",
    "max_min": "farthest_point",
    "max_sum": "greedy_max_sum",
    "facility_location": "lazy_greedy",
    "log_det": "greedy_log_det",
    "independent_set": "greedy_conflict",
}


@dataclass(frozen=True)
class LocalSearch(SubsetSolver):
    """Best-improvement swaps from the answer of a heuristic until none helps or `rounds` is reached.

    A swap exchanges one chosen token for one that is not; protected tokens never leave.  Ties go to the
    lowest index out, then the lowest in.  The value never falls below that of the start, and a choice that
    no swap improves is a local optimum (for max-sum dispersion with metric distances at least half of the
    optimum: Cevallos, Eisenbrand, Zenklusen 2017).  `start=auto` takes the greedy rule of the kind; a start
    that breaks its constraints, or whose determinant is zero, is returned as it is.  O(N^2) memory a round.
    """

    name: ClassVar[str] = "local_search"
    source: ClassVar[str] = "textbook: 1-swap neighbourhood, best improvement"
    kinds: ClassVar[frozenset[str]] = frozenset(SUBSET_KINDS)
    start: str = param("auto", doc="name of the solver that gives the first answer")
    rounds: int = param(100, low=1, doc="most swaps a sample may make")
    tolerance: float = param(1e-9, low=0, doc="relative improvement that counts as none")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        first = self._start(problem.kind).solve(problem)
        problem = first.problem  # a start that leaves scores out of the objective keeps them out
        keep = first.keep.clone()
        batch, tokens = problem.shape
        sound = subset_value(problem, keep).isfinite()
        swaps = torch.zeros_like(problem.k)
        number = torch.arange(batch, device=keep.device)
        fixed = problem.protected if problem.protected is not None else torch.zeros_like(keep)
        for _ in range(self.rounds):
            gain, scale = swap_gains(problem, keep)
            legal = (keep & ~fixed)[:, :, None] & (~keep & problem.real)[:, None, :]
            gain = gain.masked_fill(~legal, -math.inf).nan_to_num(nan=-math.inf)
            best, place = gain.flatten(1).max(1)
            better = sound & (best > self.tolerance * scale)
            if not bool(better.any()):
                break
            out, into = place // tokens, place % tokens
            keep[number[better], out[better]] = False
            keep[number[better], into[better]] = True
            swaps += better.to(swaps.dtype)
        # a swap can raise a determinant and yet make the choice singular to its dtype
        worse = subset_value(problem, keep) < subset_value(problem, first.keep)
        keep = torch.where(worse[:, None], first.keep, keep)
        return SubsetSolution(
            seconds=time.perf_counter() - started,
            stats={"swaps": swaps, "start": first.solver},
            problem=problem,
            keep=keep,
            ended=(Status.HEURISTIC,) * batch,
            solver=self.name,
        )

    def _start(self, kind: str) -> SubsetSolver:
        from pruneopt.registry import registry

        if self.start == "auto":
            found = registry("solvers").get(STARTS[kind])()
            return replace(found, on_shortfall="stop") if kind == "independent_set" else found
        found = registry("solvers").get(self.start)()
        if not isinstance(found, SubsetSolver) or kind not in found.kinds or found.name == self.name:
            raise SpecError(f"local_search.start {self.start!r} is not another solver of {kind}")
        return found
