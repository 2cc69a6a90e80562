"""Farthest-point insertion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import SEEDS, Walk, check_kind, clean_pairwise, needed_unary, seed_score
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class FarthestPoint(SubsetSolver):
    """Greedy max-min dispersion: add the token farthest from all chosen ones, `k` times.

    A running minimum makes a round O(N).  At least half of the optimum when distances obey the triangle
    inequality (Gonzalez 1985; Ravi, Rosenkrantz, Tayi 1994).  Ties go to the lower index, chosen tokens are
    masked.  Anchors and protected tokens count as chosen from the start, and then there is no seed.

    `core` is the share of the budget taken by the largest scores before distances decide: `int(core k)`
    tokens, at least one (ZSPAPrune); 0 leaves the first token to `seed`.  DivPrune is
    `seed=max_nn_distance`; its released code leaves chosen tokens in and may repeat one in bfloat16.
    """

    name: ClassVar[str] = "farthest_point"
    source: ClassVar[str] = "DivPrune (CVPR 2025), Algorithm 1; Gonzalez 1985"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_min"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "factor_two_on_metrics"})
    seed: str = param("max_nn_distance", choices=SEEDS, doc="rule for the first token")
    core: float = param(0.0, low=0, high=1, doc="share of the budget taken by the largest scores")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        pairwise = clean_pairwise(problem)
        near = torch.full(problem.shape, math.inf, dtype=pairwise.dtype, device=pairwise.device)
        if problem.anchors is not None and problem.anchors.shape[1]:
            near = problem.anchors.to(near.dtype).amin(1).masked_fill(~problem.real, math.inf)
        unary = needed_unary(self, problem, why="its core") if self.core > 0 else None
        core = (problem.k.double() * self.core).long().clamp_min(1)[:, None]
        for t in range(walk.rounds):
            score = near
            if unary is not None:
                score = torch.where(t < core, unary.to(near.dtype), near)
            elif t == 0:
                seed = seed_score(self.seed, self, problem=problem, pairwise=pairwise).to(near.dtype)
                score = torch.where((near == math.inf).all(1, keepdim=True), seed, near)
            pick = walk.take(score)
            near = torch.minimum(near, pairwise[walk.rows, pick])
        return walk.solution(self)
