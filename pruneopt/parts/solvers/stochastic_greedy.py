"""Stochastic greedy facility location.

Problem: the sum over all targets of their largest gain from the choice.  Update: of a random sample of the
tokens that are left, the one that raises the value most joins.  Source: Mirzasoleiman et al. 2015.
"""

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
class StochasticGreedy(SubsetSolver):
    """Add the best of `(N / k) ln(1 / epsilon)` random tokens, `k` times; ties to the lower index.

    All rounds together look at `N ln(1 / epsilon)` tokens, whatever k is; expected is at least
    `1 - 1/e - epsilon` of the optimum for non-negative similarities.  The draw depends on `seed` and on the
    places of tokens only: not on the device, on batch mates, on padding or on the global generator.
    Protected tokens come first.  Raises ProblemError for negative weights, under which the value may fall
    with more tokens.
    """

    name: ClassVar[str] = "stochastic_greedy"
    source: ClassVar[str] = "Mirzasoleiman et al. 2015 (Lazier than lazy greedy)"
    kinds: ClassVar[frozenset[str]] = frozenset({"facility_location"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "host", "stochastic", "uses_order"})
    epsilon: float = param(0.1, above=0, high=1, doc="share of the optimum that the sampling may cost")
    seed: int = param(0, low=0, high=2**31, doc="seed of the samples")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        walk = Walk(problem)
        gain, weight = served(problem)
        if bool((weight < 0).any()):
            raise ProblemError(
                "stochastic_greedy needs non-negative scores: they weight the tokens to be covered"
            )
        size = (problem.real.sum(1) / problem.k.clamp_min(1) * math.log(1 / self.epsilon)).ceil().clamp_min(1)
        most = min(int(size.max()), problem.shape[1])
        place, each = torch.arange(most, device=gain.device), torch.arange(len(gain), device=gain.device)
        closed = ~problem.real
        covered: Tensor | None = None
        for t in range(walk.rounds):
            asked = (
                self._ranks(t, problem).masked_fill(closed, math.inf).topk(most, dim=1, largest=False).indices
            )
            more = gain.gather(2, asked[:, None, :].expand(-1, gain.shape[1], -1))
            if covered is not None:
                more = (more - covered[:, :, None]).relu_()
            # float64 sums, compared as float32: equal tokens stay equal whatever the order of summation
            raised = torch.einsum("brs,br->bs", more.double(), weight).to(gain.dtype)
            raised = raised.masked_fill((place >= size[:, None]) | closed.gather(1, asked), -math.inf)
            score = torch.full_like(raised[:, :1], -math.inf).repeat(1, closed.shape[1])
            pick = walk.tensor(walk.pick(walk.array(score.scatter_(1, asked, raised))))
            closed.scatter_(1, pick[:, None], True)
            row = gain[each, :, pick]
            covered = row if covered is None else torch.maximum(covered, row)
        return walk.solution(self)

    def _ranks(self, turn: int, problem: SubsetProblem) -> Tensor:
        """`[B,N]` random ranks: a generator a round, a number a place, so that nothing else shifts them."""
        generator = torch.Generator().manual_seed((self.seed << 24) + turn)
        ranks = torch.rand(problem.shape[1], generator=generator, dtype=torch.float64)
        return ranks.to(problem.k.device).expand(problem.shape)
