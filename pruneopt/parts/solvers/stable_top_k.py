"""The k largest scores."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._walk import check_kind, needed_unary, ordered_solution
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class StableTopK(SubsetSolver):
    """Keep the `k` largest scores, ties to the lower index; optimal for `top_k`.

    Protected tokens come first.  Raises ProblemError for any other kind.
    """

    name: ClassVar[str] = "stable_top_k"
    source: ClassVar[str] = "textbook: a modular objective is maximised by sorting"
    kinds: ClassVar[frozenset[str]] = frozenset({"top_k"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "nested"})

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        score = needed_unary(self, problem, why="its ranking")
        if problem.protected is not None:
            score = score.masked_fill(problem.protected & problem.real, math.inf)
        order = score.argsort(dim=1, descending=True, stable=True)[:, : problem.most]
        if problem.counts is None or min(problem.counts) < problem.most:
            place = torch.arange(order.shape[1], device=order.device)
            order = torch.where(place < problem.k[:, None], order, -1)
        return ordered_solution(problem, order, solver=self, started=started, status=Status.OPTIMAL)
