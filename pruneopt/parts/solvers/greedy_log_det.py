"""Greedy maximisation of a log-determinant.

A choice S is worth `log det L_S`.  Adding j multiplies the determinant by its residual variance given S,
`r_j = L_jj - sum_t f_tj^2`, where `f_t = (L_p - sum_{s < t} f_sp f_s) / sqrt(r_p)` is the row that the t-th
pick p adds to a Cholesky factor.  Source: Chen, Zhang, Zhou 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import Walk, check_kind
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class GreedyLogDet(SubsetSolver):
    """Fast greedy MAP of a determinantal point process: `k` rounds of an incremental Cholesky, O(k^2 N).

    A round adds the token with the largest residual variance given the chosen ones, ties to the lower
    index.  Once every residual is below `tolerance` times the largest `q_i^2 L_ii` of its sample, the rank
    of the kernel is used up and any further choice has determinant zero: the rest is filled by the largest
    `q_i^2 L_ii`, ties to the lower index, and `stats["rank"]` `[B]` counts the tokens chosen before that.
    The released CDPruner takes the root of a negative number there and returns duplicates.
    """

    name: ClassVar[str] = "greedy_log_det"
    source: ClassVar[str] = "Chen, Zhang, Zhou 2018 (NeurIPS), Algorithm 1; CDPruner (NeurIPS 2025)"
    kinds: ClassVar[frozenset[str]] = frozenset({"log_det"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "rows"})
    tolerance: float = param(1e-6, low=0, high=1, doc="relative residual that counts as zero")

    @np.errstate(all="ignore")  # as torch is, where numbers overflow
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        xp, like = walk.xp, walk.pairs.like
        quality = like.new_ones(problem.shape)
        if problem.unary is not None:
            quality = problem.unary.to(like.dtype).masked_fill(~problem.real, 0)
        own = (walk.pairs.own() * quality.square()).masked_fill(~problem.real, 0)
        zero = walk.array(own.amax(1) * self.tolerance)
        residual, variance, quality = walk.scores(own), walk.scores(own), walk.array(quality)
        factor = walk.array(like.new_zeros(problem.shape[0], walk.rounds, problem.shape[1]))
        useful = walk.array(torch.zeros(problem.shape[0], walk.rounds, dtype=torch.bool, device=like.device))
        for t in range(walk.rounds):
            left = residual.max(1) > zero if walk.host else residual.amax(1) > zero
            # once a residual is used up it stays so, and then the largest variance decides
            spent = not walk.host or not left.all()
            pick = walk.pick(xp.where(left[:, None], residual, variance) if spent else residual)
            pivot = residual[walk.each, pick]
            walk.close(pick, residual, variance)
            useful[:, t] = pivot > zero
            row = walk.row(pick)
            if problem.unary is not None:
                row = row * quality * quality[walk.each, pick][:, None]
            if t:
                row = row - xp.matmul(factor[walk.each, :t, pick][:, None, :], factor[:, :t])[:, 0]
            # a root of infinity makes the row of a pick without residual zero
            row = row * xp.where(useful[:, t], pivot, math.inf)[:, None] ** -0.5
            factor[:, t] = row
            residual -= row * row
        return walk.solution(self, rank=(walk.tensor(useful) & walk.within).sum(1))
