"""Greedy maximisation of a log-determinant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import Walk, check_kind, clean_pairwise
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
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget"})
    tolerance: float = param(1e-6, low=0, high=1, doc="relative residual that counts as zero")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        kernel = clean_pairwise(problem)
        quality = torch.ones(problem.shape, dtype=kernel.dtype, device=kernel.device)
        if problem.unary is not None:
            quality = problem.unary.to(kernel.dtype).masked_fill(~problem.real, 0)
        variance = kernel.diagonal(dim1=1, dim2=2) * quality.square()
        zero = variance.amax(1, keepdim=True) * self.tolerance
        residual = variance.clone()
        batch, tokens = problem.shape
        factor = torch.zeros(batch, walk.rounds, tokens, dtype=kernel.dtype, device=kernel.device)
        rank = torch.zeros_like(problem.k)
        for t in range(walk.rounds):
            left = residual.masked_fill(walk.taken, -math.inf) > zero
            pick = walk.take(torch.where(left.any(1, keepdim=True), residual, variance))
            pivot = residual[walk.rows, pick][:, None]
            useful = pivot > zero
            rank += (useful.squeeze(1) & (problem.k > t)).to(rank.dtype)
            row = kernel[walk.rows, pick] * quality * quality[walk.rows, pick][:, None]
            if t:
                known = factor[:, :t]
                at_pick = known[walk.rows, :, pick]
                row = row - torch.bmm(at_pick[:, None, :], known).squeeze(1)
            row = torch.where(useful, row * pivot.clamp_min(torch.finfo(row.dtype).tiny).rsqrt(), 0)
            factor[:, t] = row
            residual = residual - row.square()
        return walk.solution(self, rank=rank)
