"""The largest scores of every group."""

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
class QuotaTopK(SubsetSolver):
    """Keep the `quota[b,g]` largest scores of every group, ties to the lower index; optimal for `quota`.

    Protected tokens come first within their group.  Windowed top-k, per-frame and two-stage budgets are
    this problem with other groups.
    """

    name: ClassVar[str] = "quota_top_k"
    source: ClassVar[str] = "textbook: a modular objective over a partition matroid is maximised by sorting"
    kinds: ClassVar[frozenset[str]] = frozenset({"quota"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget"})

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        assert problem.group is not None and problem.quota is not None
        score = needed_unary(self, problem, why="its ranking")
        if problem.protected is not None:
            score = score.masked_fill(problem.protected & problem.real, math.inf)
        ranked = score.argsort(dim=1, descending=True, stable=True)
        real = problem.real.gather(1, ranked)
        group = problem.group.gather(1, ranked).masked_fill(~real, 0)
        hot = (group[:, :, None] == torch.arange(problem.quota.shape[1], device=group.device)) & real[
            :, :, None
        ]
        place = hot.cumsum(1).gather(2, group[:, :, None]).squeeze(2)
        taken = real & (place <= problem.quota.gather(1, group))
        first = (~taken).to(torch.int8).argsort(dim=1, stable=True)[:, : problem.most]
        order = torch.where(taken.gather(1, first), ranked.gather(1, first), -1)
        return ordered_solution(problem, order, solver=self, started=started, status=Status.OPTIMAL)
