"""Lazy greedy facility location.

A choice S is worth `sum over n of w_n max over s in S of v_ns`.  Every pick p changes what target n is served
for by `best_n <- max(best_n, v_np)`, and the next pick is the token s of the largest gain
`sum over n of w_n max(v_ns - best_n, 0)`, which never rises.  Source: Nemhauser, Wolsey, Fisher 1978.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import Walk, check_kind, ordered_solution
from pruneopt.problems.kinds._terms import unary_or
from pruneopt.problems.kinds.facility_location import served
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored, rows_of

_NEGATIVE = "lazy_greedy needs non-negative scores: they weight the tokens to be covered"
FEW, MANY = 8, 64  # gains that are evaluated at once


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

    Where the pairwise term is read by rows, old gains are upper bounds: only tokens that may have the largest
    one are evaluated anew (Minoux 1978), a sample at a time.
    """

    name: ClassVar[str] = "lazy_greedy"
    source: ClassVar[str] = "Nemhauser, Wolsey, Fisher 1978; lazy gains after Minoux 1978"
    kinds: ClassVar[frozenset[str]] = frozenset({"facility_location"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "nested", "submodular_greedy", "rows"})
    lazy: str = param("auto", choices=("auto", "always", "never"), doc="correct old gains")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        if isinstance(problem.pairwise, Unstored):
            return self._by_rows(problem)
        walk = Walk(problem)
        similar, weight = served(problem)
        weight = weight.to(similar.dtype)
        on_cpu = similar.device.type == "cpu"
        lazy = self.lazy == "always" or (self.lazy == "auto" and on_cpu)
        if on_cpu and bool((weight < 0).any()):
            raise ProblemError(_NEGATIVE)
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

    def _by_rows(self, problem: SubsetProblem) -> SubsetSolution:
        started = time.perf_counter()
        if problem.unary is not None and bool((problem.unary.masked_fill(~problem.real, 0) < 0).any()):
            raise ProblemError(_NEGATIVE)
        order = problem.k.new_full((problem.shape[0], problem.most), -1)
        for b in range(problem.shape[0]):
            found = _walk_by_rows(problem.sample(b))
            order[b, : found.shape[1]] = found[0]
        return ordered_solution(problem, order, solver=self, started=started)


def _walk_by_rows(problem: SubsetProblem) -> Tensor:
    """`[1,k]` the order of picks of the only sample."""
    walk, targets = Walk(problem), _Targets(problem)
    gain = targets.sums().masked_fill(~problem.real[0], -math.inf)
    best = torch.full_like(targets.weight, -math.inf)
    for t in range(walk.rounds):
        if t == 1:
            gain = targets.gains(best).masked_fill(gain == -math.inf, -math.inf)
        fresh, count = torch.full_like(gain, t == 0, dtype=torch.bool), FEW
        forced = walk.forced is not None and int(walk.forced[0, t]) >= 0
        while not forced and not fresh[(rank := gain.to(best.dtype)).argmax()]:
            rank = rank.masked_fill(fresh, -math.inf)
            some = rank.topk(min(count, int((rank > -math.inf).sum()))).indices
            gain[some] = targets.gains(best, some)
            fresh[some] = True
            count = min(2 * count, MANY)
        pick = walk.tensor(walk.pick(walk.array(gain.to(best.dtype)[None])))
        gain[pick] = -math.inf
        best = torch.maximum(best, targets.read(pick)[0])
    return walk.picks


class _Targets:
    """What the targets of one sample, tokens and then anchors, gain from each token."""

    def __init__(self, problem: SubsetProblem) -> None:
        self.servers = rows_of(problem.pairwise).turned()
        weights = [unary_or(problem, 1.0)]
        self.outside: Tensor | None = None
        if problem.anchors is not None:
            self.outside, there = served(replace(problem, pairwise=None, unary=None))
            self.outside = self.outside.to(self.servers.like.dtype)
            weights.append(there)
        self.tokens = weights[0]
        self.weight = torch.cat(weights, 1)[0].to(self.servers.like.dtype)
        self.weighs = any(term is not None for term in (problem.unary, problem.mask, problem.anchors))

    def read(self, tokens: Tensor | slice) -> Tensor:
        """`[m,R]` what all targets gain from some tokens."""
        found = self.servers.block(tokens if isinstance(tokens, slice) else tokens[None])
        if self.outside is not None:
            found = torch.cat([found, self.outside[:, :, tokens].transpose(1, 2)], 2)
        return found[0]

    def sums(self) -> Tensor:
        """`[N]` float64 gain of every token alone."""
        total = self.servers.product(self.tokens)[0]
        if self.outside is not None:
            outside = self.outside[0] * self.weight[self.tokens.shape[1] :, None]
            total = total + outside.sum(0, dtype=torch.float64)
        return total

    def gains(self, best: Tensor, tokens: Tensor | None = None) -> Tensor:
        """`[m]` float64 gain of some tokens, or `[N]` of all, over what serves the targets now."""
        now = self._worth(best.clone()[None])
        if tokens is not None:
            return self._worth(torch.maximum(self.read(tokens), best)) - now
        gain = now.expand(self.servers.shape[1]).clone()
        for part in self.servers.parts():
            found = self.read(part)
            gain[part] = self._worth(torch.maximum(found, best, out=found)) - now
        return gain

    def _worth(self, found: Tensor) -> Tensor:
        """`[m]` float64 what targets are served for in all; float32 entries add up exactly enough."""
        return (found.mul_(self.weight) if self.weighs else found).sum(1, dtype=torch.float64)
