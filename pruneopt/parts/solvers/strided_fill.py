"""Every s-th token of what the protected ones leave."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._walk import check_kind, ordered_solution
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class StridedFill(SubsetSolver):
    """Keep the protected tokens and fill the budget with every s-th of the others, scores unread.

    A fill rule, not an attempt at the optimum: the gap of its answer says what ignoring the scores costs.
    With M tokens left and C places, the stride is `max(1, M // C)` from the first one; the tail beyond
    `C s` is never taken.  Source: VisionZip, contextual targets.
    """

    name: ClassVar[str] = "strided_fill"
    source: ClassVar[str] = "VisionZip (CVPR 2025), contextual tokens as released"
    kinds: ClassVar[frozenset[str]] = frozenset({"top_k"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "uses_order", "cost_blind"})

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        forced = torch.zeros_like(problem.real)
        if problem.protected is not None:
            forced = problem.protected & problem.real
        free = problem.real & ~forced
        count = (problem.k - forced.sum(1))[:, None]
        stride = (free.sum(1, keepdim=True) // count.clamp_min(1)).clamp_min(1)
        place = free.long().cumsum(1) - 1
        taken = free & (place % stride == 0) & (place // stride < count)
        first = torch.where(forced, 0, torch.where(taken, 1, 2)).argsort(dim=1, stable=True)
        order = first[:, : problem.most]
        slot = torch.arange(order.shape[1], device=order.device)
        return ordered_solution(
            problem, order.masked_fill(slot >= problem.k[:, None], -1), solver=self, started=started
        )
