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
        pairs = conflicts(problem)
        score = needed_unary(self, problem, why="its order")
        blocked = torch.zeros(problem.shape, dtype=torch.bool, device=pairs.device)
        filled = torch.zeros_like(problem.k)
        for t in range(walk.rounds):
            open_ = ~(blocked | walk.taken)
            if walk.forced is not None:
                open_ |= walk.forced
            any_open = open_.any(1)
            fills = ~any_open & (problem.k > t)
            masked = torch.where(any_open[:, None], score.masked_fill(~open_, -math.inf), score)
            allowed = None if self.on_shortfall == "fill" else any_open
            pick = walk.take(masked, allowed)
            blocked |= pairs[walk.rows, pick]
            filled += fills.to(filled.dtype)
        filled = filled if self.on_shortfall == "fill" else torch.zeros_like(filled)
        return walk.solution(self, filled=filled)
