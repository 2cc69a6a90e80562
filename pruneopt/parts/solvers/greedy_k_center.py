"""Farthest-first traversal for k-center.

A choice S costs `max over n of min over s in S of d_ns`.  Every pick p changes what the tokens pay by
`near_n <- min(near_n, d_np)`, and the next pick is the one that pays most.  Source: Gonzalez 1985.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._first import least_of_others
from pruneopt.parts.solvers._walk import Walk, check_kind
from pruneopt.problems.row_sums import Mapped
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
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "factor_two_on_metrics", "rows"})

    @np.errstate(all="ignore")  # as torch is, where numbers overflow
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        dtype = walk.pairs.like.dtype
        start = torch.full(problem.shape, math.inf, dtype=dtype, device=problem.k.device)
        if problem.anchors is not None and problem.anchors.shape[1]:
            start = problem.anchors.to(dtype).amin(1)
        near = walk.scores(start)
        for t in range(walk.rounds):
            if t == 0 and not walk.seeded:
                # minus the largest distance is the least of the negated ones; a token itself pays nothing
                centre = least_of_others(Mapped(walk.turned, torch.neg), problem).clamp_max(0)
                alone = (start == math.inf).all(1, keepdim=True)
                pick = walk.take(walk.scores(torch.where(alone, centre, start)), near)
            else:
                pick = walk.take(near)
            walk.xp.minimum(near, walk.column(pick), out=near)
        return walk.solution(self)
