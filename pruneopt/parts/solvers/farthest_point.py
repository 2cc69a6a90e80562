"""Farthest-point insertion.

A choice S is worth `min over i != j in S of d_ij`.  Every pick p changes the distance to the choice by
`near_j <- min(near_j, d_pj)`, and the next pick is the largest of it.  Source: Gonzalez 1985.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._first import SEEDS, seed_score
from pruneopt.parts.solvers._walk import Walk, check_kind, core_size, needed_unary
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
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "factor_two_on_metrics", "rows"})
    seed: str = param("max_nn_distance", choices=SEEDS, doc="rule for the first token")
    core: float = param(0.0, low=0, high=1, doc="share of the budget taken by the largest scores")

    @np.errstate(all="ignore")  # as torch is, where numbers overflow
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        xp, dtype = walk.xp, walk.pairs.like.dtype
        start = torch.full(problem.shape, math.inf, dtype=dtype, device=problem.k.device)
        if problem.anchors is not None and problem.anchors.shape[1]:
            start = problem.anchors.to(dtype).amin(1).masked_fill(~problem.real, math.inf)
        near = walk.scores(start)
        unary, core = None, walk.array(core_size(problem, self.core))
        if self.core > 0:
            unary = walk.scores(needed_unary(self, problem, why="its core").to(dtype))
        for t in range(walk.rounds):
            if unary is not None:
                pick = walk.take(xp.where(t < core, unary, near), unary, near)
            elif t == 0 and not walk.seeded:
                seed = seed_score(self.seed, self, problem=problem).to(dtype)
                alone = (start == math.inf).all(1, keepdim=True)
                pick = walk.take(walk.scores(torch.where(alone, seed, start)), near)
            else:
                pick = walk.take(near)
            xp.minimum(near, walk.row(pick), out=near)
        return walk.solution(self)
