"""Greedy max-sum dispersion."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import SEEDS, Walk, check_kind, clean_pairwise, needed_unary, seed_score
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
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget"})
    seed: str = param("max_mean_distance", choices=SEEDS, doc="rule for the first token")
    core: float = param(0.0, low=0, high=1, doc="share of the budget taken by the largest scores")
    scores: str = param("add", choices=("add", "seed"), doc="whether scores belong to the objective")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        adds = self.scores == "add"
        walk = Walk(problem if adds else replace(problem, unary=None))
        pairwise = clean_pairwise(problem)
        total = torch.zeros(problem.shape, dtype=pairwise.dtype, device=pairwise.device)
        seeded = torch.ones(problem.shape[0], 1, dtype=torch.bool, device=pairwise.device)
        if adds and problem.unary is not None:
            total = problem.unary.to(total.dtype).masked_fill(~problem.real, 0)
        if problem.anchors is not None and problem.anchors.shape[1]:
            absent = problem.anchors == math.inf
            rows = problem.anchors.masked_fill(absent, 0).to(total.dtype)
            total = total + rows.sum(1).masked_fill(~problem.real, 0)
            seeded = absent.all(2).all(1, keepdim=True)
        unary = needed_unary(self, problem, why="its core") if self.core > 0 else None
        core = (problem.k.double() * self.core).long().clamp_min(1)[:, None]
        for t in range(walk.rounds):
            score = total
            if unary is not None:
                score = torch.where(t < core, unary.to(total.dtype), total)
            elif t == 0:
                seed = seed_score(self.seed, self, problem=problem, pairwise=pairwise).to(total.dtype)
                score = torch.where(seeded, seed, total)
            pick = walk.take(score)
            total = total + pairwise[walk.rows, pick]
        return walk.solution(self)
