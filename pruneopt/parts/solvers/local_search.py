"""Swap improvement of any subset."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.errors import SpecError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, greedy_answer
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class LocalSearch(SubsetSolver):
    """Best-improvement swaps from the answer of a heuristic until none helps or `rounds` is reached.

    A swap exchanges one chosen token for one that is not; protected tokens never leave.  Ties go to the
    lowest index out, then the lowest in.  The value never falls below that of the start, and a choice that
    no swap improves is a local optimum (for max-sum dispersion with metric distances at least half of the
    optimum: Cevallos, Eisenbrand, Zenklusen 2017).  `start=auto` takes the greedy rule of the kind, or the
    first tokens where it has none; a start that breaks a constraint, or whose determinant is zero, is
    returned as it is.  O(N^2) memory a round.
    """

    name: ClassVar[str] = "local_search"
    source: ClassVar[str] = "textbook: 1-swap neighbourhood, best improvement"
    kinds = KindsOffering("swap_gains")
    start: str = param("auto", doc="name of the solver that gives the first answer")
    rounds: int = param(100, low=1, doc="most swaps a sample may make")
    tolerance: float = param(1e-9, low=0, doc="relative improvement that counts as none")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        first = self._start(problem)
        problem = first.problem  # a start that leaves scores out of the objective keeps them out
        keep = first.keep.clone()
        batch, tokens = problem.shape
        sound = problem.value(keep).isfinite()
        swaps = torch.zeros_like(problem.k)
        number = torch.arange(batch, device=keep.device)
        fixed = problem.protected if problem.protected is not None else torch.zeros_like(keep)
        for _ in range(self.rounds):
            gain, scale = problem.rules.swap_gains(problem, keep), problem.magnitude(keep)
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
        worse = problem.value(keep) < problem.value(first.keep)
        keep = torch.where(worse[:, None], first.keep, keep)
        return SubsetSolution(
            seconds=time.perf_counter() - started,
            stats={"swaps": swaps, "start": first.solver},
            problem=problem,
            keep=keep,
            ended=(Status.HEURISTIC,) * batch,
            solver=self.name,
        )

    def _start(self, problem: SubsetProblem) -> SubsetSolution:
        if self.start == "auto":
            return greedy_answer(problem, self)
        from pruneopt.registry import registry

        found = registry("solvers").get(self.start)()
        if not isinstance(found, SubsetSolver) or problem.kind not in found.kinds or found.name == self.name:
            raise SpecError(f"local_search.start {self.start!r} is not another solver of {problem.kind}")
        return found.solve(problem)
