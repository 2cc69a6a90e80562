"""Greedy walk over scores that skips tokens too similar to a chosen one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import Walk, check_kind, needed_unary
from pruneopt.problems.kinds.independent_set import conflicts
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class GreedyConflict(SubsetSolver):
    """Take tokens by falling score; each taken one rules out all tokens with `pairwise > threshold`.

    Ties go to the lower index.  When candidates run out before `k`, `on_shortfall="fill"` appends the best
    of the rest, which then break the threshold (the solution's value is -inf, `stats["filled"]` `[B]` counts
    them), and `"stop"` keeps fewer.  Protected tokens are always taken.  The paper's own shortfall rule is
    not known; filling is what the only public port does.
    """

    name: ClassVar[str] = "greedy_conflict"
    source: ClassVar[str] = "GreedyPrune (arXiv 2506.13166); shortfall rule from a third-party port"
    kinds: ClassVar[frozenset[str]] = frozenset({"independent_set"})
    on_shortfall: str = param("fill", choices=("fill", "stop"), doc="what to do when candidates run out")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        xp, pairs = walk.xp, walk.array(conflicts(problem))
        score = walk.scores(needed_unary(self, problem, why="its order"))
        free = walk.scores(needed_unary(self, problem, why="its order"))  # those in no conflict
        fills = walk.array(torch.zeros(problem.shape[0], walk.rounds, dtype=torch.bool, device=walk.device))
        for t in range(walk.rounds):
            short = (free == -math.inf).all(1)
            if walk.forced is not None:
                short &= walk.forced[:, t] < 0
            pick = walk.take(xp.where(short[:, None], score, free), score, free)
            free = xp.where(pairs[walk.each, pick], -math.inf, free)
            fills[:, t] = short
            if self.on_shortfall == "stop":
                walk.order[:, t] = xp.where(short, -1, pick)
        filled = (walk.tensor(fills) & walk.within).sum(1)
        return walk.solution(self, filled=filled if self.on_shortfall == "fill" else torch.zeros_like(filled))
