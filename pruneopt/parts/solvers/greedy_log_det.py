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
from pruneopt.parts.solvers._walk import Array, Walk, check_kind
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
        residual, variance, quality = walk.scores(own), walk.array(own), walk.array(quality)
        factor = walk.array(like.new_empty(problem.shape[0], walk.rounds, problem.shape[1]))
        pivots = walk.array(like.new_zeros(problem.shape[0], walk.rounds))
        for t in range(walk.rounds):
            pick = residual.argmax(1)
            pivot = residual[walk.each, pick]
            usual = walk.host and walk.forced is None and (pivot > zero).all()
            if not usual:  # once its residual is used up, the largest variance decides
                rest = xp.where(residual == -math.inf, -math.inf, variance)
                pick = xp.where(pivot > zero, pick, rest.argmax(1))
            pick = walk.record(pick)
            if not usual:
                pivot = residual[walk.each, pick]
            walk.close(pick, residual)
            pivots[:, t] = pivot
            row = walk.row(pick)
            if problem.unary is not None:
                row = row * quality * quality[walk.each, pick][:, None]
            if t:
                row = row - _explained(factor, pick, t=t)
            # a root of infinity makes the row of a pick without residual zero
            root = (pivot if usual else xp.where(pivot > zero, pivot, math.inf)) ** -0.5
            row = xp.multiply(row, root[:, None], out=factor[:, t])
            residual -= row * row
        useful = walk.tensor(pivots > zero[:, None])
        return walk.solution(self, rank=(useful & walk.within).sum(1))


def _explained(factor: Array, pick: Array, *, t: int) -> Array:
    """`[B,N]` what the first `t` rows of a factor `[B,k,N]` say of the row of `pick`.

    On the host one product with a vector a sample, which is faster than a product of batches.
    """
    if isinstance(factor, torch.Tensor):
        at = factor[torch.arange(len(pick), device=pick.device), :t, pick]
        return torch.bmm(at[:, None, :], factor[:, :t]).squeeze(1)
    if len(pick) == 1:
        return (factor[0, :t, pick[0]] @ factor[0, :t])[None]
    return np.stack([known[:t, p] @ known[:t] for known, p in zip(factor, pick, strict=True)])
