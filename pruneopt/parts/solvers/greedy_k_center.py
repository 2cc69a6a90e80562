"""Farthest-first traversal for k-center."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._walk import Walk, check_kind, clean_pairwise
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class GreedyKCenter(SubsetSolver):
    """Keep the token that is served worst, `k` times; O(N) a round.

    The first token is the one whose farthest token is nearest, the optimum for `k = 1`.  Where distances obey
    the triangle inequality the radius is at most twice the least possible (Gonzalez 1985), and its bound
    proves that; no polynomial rule does better unless P = NP (Hsu and Nemhauser 1979).  Anchors and protected
    tokens serve from the start.  Ties go to the lower index.
    """

    name: ClassVar[str] = "greedy_k_center"
    source: ClassVar[str] = "Gonzalez 1985"
    kinds: ClassVar[frozenset[str]] = frozenset({"k_center"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "factor_two_on_metrics"})

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        cost = clean_pairwise(problem)
        near = torch.full(problem.shape, math.inf, dtype=cost.dtype, device=cost.device)
        if problem.anchors is not None and problem.anchors.shape[1]:
            near = problem.anchors.to(near.dtype).amin(1)
        for t in range(walk.rounds):
            score = near
            if t == 0:
                own = torch.eye(cost.shape[1], dtype=torch.bool, device=cost.device)
                centre = -cost.masked_fill(own, 0).amax(1)
                score = torch.where((near == math.inf).all(1, keepdim=True), centre, near)
            pick = walk.take(score)
            near = torch.minimum(near, cost[walk.rows, :, pick])
        return walk.solution(self)
