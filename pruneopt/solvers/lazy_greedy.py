"""Lazy greedy facility location."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver, param
from pruneopt.problems import SubsetProblem
from pruneopt.solution import SubsetSolution
from pruneopt.solvers.walk import Walk, check_kind, clean_pairwise


@dataclass(frozen=True)
class LazyGreedy(SubsetSolver):
    """Add the token that raises the facility-location value most, `k` times; ties to the lower index.

    Marginal gains only fall as the choice grows, so old gains are upper bounds and only the most promising
    `block` tokens of a round are evaluated again (Minoux 1978); the answer is that of the plain rule.  On a
    GPU, where asking whether a round is settled costs more than it saves, all gains are evaluated.
    At least `1 - 1/e` of the optimum for non-negative similarities (Nemhauser, Wolsey, Fisher 1978).

    `lazy`: `auto` (lazy on the CPU), `always` or `never`.  Raises ProblemError for negative weights, for
    which gains may rise.
    """

    name: ClassVar[str] = "lazy_greedy"
    source: ClassVar[str] = "Nemhauser, Wolsey, Fisher 1978; Minoux 1978"
    kinds: ClassVar[frozenset[str]] = frozenset({"facility_location"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "submodular_greedy"})
    lazy: str = param("auto", choices=("auto", "always", "never"), doc="reuse old gains as bounds")
    block: int = param(16, low=1, doc="tokens evaluated at once by the lazy rule")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        similar = clean_pairwise(problem).transpose(1, 2).contiguous()  # row j: similarity of all to token j
        weight = torch.ones(problem.shape, dtype=similar.dtype, device=similar.device)
        if problem.unary is not None:
            weight = problem.unary.to(similar.dtype)
        weight = weight.masked_fill(~problem.real, 0)
        lazy = self.lazy == "always" or (self.lazy == "auto" and similar.device.type == "cpu")
        if similar.device.type == "cpu" and bool((weight < 0).any()):
            raise ProblemError("lazy_greedy needs non-negative scores: they weight the tokens to be covered")
        gain = (similar @ weight[:, :, None]).squeeze(2)
        covered = None
        evaluated = torch.zeros((), dtype=torch.int64)
        for t in range(walk.rounds):
            if covered is not None and (t == 1 or not lazy):
                gain = torch.relu(similar - covered[:, None, :]).matmul(weight[:, :, None]).squeeze(2)
            elif covered is not None:
                evaluated += self._refresh(gain, similar, covered, weight, walk)
            pick = walk.take(gain)
            row = similar[walk.rows, pick]
            covered = row if covered is None else torch.maximum(covered, row)
        return walk.solution(self, evaluated=evaluated)

    def _refresh(self, gain: Tensor, similar: Tensor, covered: Tensor, weight: Tensor, walk: Walk) -> int:
        """Evaluate gains in place, best old ones first, until the best of every sample is up to date."""
        block = min(self.block, gain.shape[1])
        stale = ~walk.taken
        if walk.forced is not None:  # a protected token is taken whatever its gain is
            stale &= ~walk.forced.any(1, keepdim=True)
        stale &= (walk.problem.k > walk.round)[:, None]
        count = 0
        while True:
            best = gain.masked_fill(walk.taken, -math.inf).argmax(1, keepdim=True)
            open_ = stale.gather(1, best).squeeze(1).nonzero().squeeze(1)
            if len(open_) == 0:
                return count
            old = gain[open_].masked_fill(~stale[open_], -math.inf)
            some = old.topk(block, dim=1).indices
            rows = similar[open_[:, None], some]
            fresh = torch.relu(rows - covered[open_][:, None, :]).matmul(weight[open_][:, :, None]).squeeze(2)
            was_stale = stale[open_[:, None], some]
            gain[open_[:, None], some] = torch.where(was_stale, fresh, gain[open_[:, None], some])
            stale[open_[:, None], some] = False
            count += some.numel()
