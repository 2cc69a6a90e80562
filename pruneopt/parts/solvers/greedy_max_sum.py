"""Greedy max-sum dispersion.

A choice S is worth the sum of `d_ij` over its pairs, plus its scores.  Every pick p changes what a token
would add by `total_j <- total_j + d_pj`, and the next pick is the largest of it.  Source: ToDRE, stage 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._first import SEEDS, seed_score
from pruneopt.parts.solvers._walk import Walk, check_kind, core_size, needed_unary
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class GreedyMaxSum(SubsetSolver):
    """Add the token with the largest summed distance to all chosen ones, `k` times; O(N) a round.

    With cosine distances this is the argmin of the summed similarity in ToDRE stage 1 and TrimTokenator's
    RepMax, which differ in `seed` only (`unary` with CLS attention as score; `max_mean_distance`).  Anchors
    count as chosen, and then the first token follows the rule itself.  Ties go to the lower index.

    `scores="add"` maximises distances plus scores; `scores="seed"` uses the scores for the first token only
    (or the first `int(core k)`), and the problem that the solution reports on has no scores then.
    """

    name: ClassVar[str] = "greedy_max_sum"
    source: ClassVar[str] = "ToDRE (arXiv 2505.18757v2), stage 1; TrimTokenator (arXiv 2509.00320), stage 2"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_sum"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "rows"})
    seed: str = param("max_mean_distance", choices=SEEDS, doc="rule for the first token")
    core: float = param(0.0, low=0, high=1, doc="share of the budget taken by the largest scores")
    scores: str = param("add", choices=("add", "seed"), doc="whether scores belong to the objective")

    @np.errstate(all="ignore")  # as torch is, where numbers overflow
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        adds = self.scores == "add"
        walk = Walk(problem if adds else replace(problem, unary=None))
        xp, dtype = walk.xp, walk.pairs.like.dtype
        start = torch.zeros(problem.shape, dtype=dtype, device=problem.k.device)
        seeded = torch.ones(problem.shape[0], 1, dtype=torch.bool, device=start.device)
        if adds and problem.unary is not None:
            start = problem.unary.to(dtype)
        if problem.anchors is not None and problem.anchors.shape[1]:
            absent = problem.anchors == math.inf
            start = start + problem.anchors.masked_fill(absent, 0).to(dtype).sum(1)
            seeded = absent.all(2).all(1, keepdim=True)
        total = walk.scores(start)
        unary, core = None, walk.array(core_size(problem, self.core))
        if self.core > 0:
            unary = walk.scores(needed_unary(self, problem, why="its core").to(dtype))
        for t in range(walk.rounds):
            if unary is not None:
                pick = walk.take(xp.where(t < core, unary, total), unary, total)
            elif t == 0 and not walk.seeded:
                seed = seed_score(self.seed, self, problem=problem).to(dtype)
                pick = walk.take(walk.scores(torch.where(seeded, seed, start)), total)
            else:
                pick = walk.take(total)
            xp.add(total, walk.row(pick), out=total)
        return walk.solution(self)
