"""Lazy greedy facility location."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import Walk, check_kind
from pruneopt.problems.kinds.facility_location import served
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class LazyGreedy(SubsetSolver):
    """Add the token that raises the facility-location value most, `k` times; ties to the lower index.

    A pick changes the gain of other tokens only through the tokens that it now serves better, about `N / t`
    of them in round t, so gains are corrected by those rows alone instead of being computed anew; the answer
    is that of the plain rule up to rounding (float64 accumulation).  On a GPU, where asking which rows
    changed costs more than it saves, all gains are evaluated every round.  At least `1 - 1/e` of the optimum
    for non-negative similarities (Nemhauser, Wolsey, Fisher 1978).

    `lazy`: `auto` (on the CPU), `always` or `never`.  Raises ProblemError for negative weights, under which
    the value may fall with more tokens.
    """

    name: ClassVar[str] = "lazy_greedy"
    source: ClassVar[str] = "Nemhauser, Wolsey, Fisher 1978; lazy gains after Minoux 1978"
    kinds: ClassVar[frozenset[str]] = frozenset({"facility_location"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "submodular_greedy"})
    lazy: str = param("auto", choices=("auto", "always", "never"), doc="correct old gains")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        similar, weight = served(problem)
        weight = weight.to(similar.dtype)
        on_cpu = similar.device.type == "cpu"
        lazy = self.lazy == "always" or (self.lazy == "auto" and on_cpu)
        if on_cpu and bool((weight < 0).any()):
            raise ProblemError("lazy_greedy needs non-negative scores: they weight the tokens to be covered")
        weighs = problem.unary is not None or problem.mask is not None or problem.anchors is not None
        # float64 sums, compared as float32: equal tokens stay equal whatever the order of summation
        gain = (similar * weight[:, :, None] if weighs else similar).sum(1, dtype=torch.float64)
        covered: Tensor | None = None
        each = torch.arange(len(gain), device=gain.device)
        gain = gain.masked_fill(~problem.real, -math.inf)
        for t in range(walk.rounds):
            closed = gain == -math.inf
            pick = walk.tensor(walk.pick(walk.array(gain.to(similar.dtype))))
            closed.scatter_(1, pick[:, None], True)
            row = similar[each, :, pick]
            better = row if covered is None else torch.maximum(covered, row)
            if covered is None or not lazy:
                more = (similar - better[:, :, None]).relu_()
                gain = (more.mul_(weight[:, :, None]) if weighs else more).sum(1, dtype=torch.float64)
            elif t + 1 < walk.rounds:
                gained = (better > covered) & (weight > 0)
                sample, token = gained.nonzero(as_tuple=True)
                low, high = covered[gained][:, None], better[gained][:, None]
                lost = (torch.clamp(similar[sample, token], low, high) - low) * weight[gained][:, None]
                gain.index_add_(0, sample, lost.double(), alpha=-1)
            gain = gain.masked_fill(closed, -math.inf)
            covered = better
        return walk.solution(self)
