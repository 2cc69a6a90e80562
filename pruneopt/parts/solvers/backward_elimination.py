"""Drop the tokens most like all that are left, a share per round."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, clean_pairwise, ordered_solution
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class BackwardElimination(SubsetSolver):
    """Max-sum dispersion by dropping the tokens with the least summed distance to those that are left.

    A round drops `n // divisor` of the n tokens left (at least one, never beyond the budget); among equals
    the higher index goes.  `reuse=true` overwrites the divisor with the number just dropped, as SAINT's
    released code does by accident, so that 576 tokens go 540, 525, 490, 476 and so on.  Protected tokens
    stay.  Source: SAINT, full-graph mode for CLIP.
    """

    name: ClassVar[str] = "backward_elimination"
    source: ClassVar[str] = "SAINT (arXiv 2503.11549), CLIP mode as released"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_sum"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget"})
    divisor: int = param(16, low=1, doc="a round drops one in this many")
    reuse: bool = param(False, doc="the number dropped becomes the next divisor")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        pairwise = clean_pairwise(problem)
        alive = problem.real.clone()
        total = torch.einsum("bij,bj->bi", pairwise, alive.to(pairwise.dtype))
        plan = [
            self.plan(n, k) for n, k in zip(problem.real.sum(1).tolist(), problem.k.tolist(), strict=True)
        ]
        rounds = max((len(p) for p in plan), default=0)
        drops = torch.tensor([p + [0] * (rounds - len(p)) for p in plan], device=alive.device)
        most = [max(p[t] for p in plan if t < len(p)) for t in range(rounds)]
        slot = torch.arange(alive.shape[1], device=alive.device)
        number = torch.arange(alive.shape[0], device=alive.device)[:, None]
        for t in range(rounds):
            score = total.masked_fill(~alive, math.inf)
            if problem.protected is not None:
                score = score.masked_fill(problem.protected & alive, torch.finfo(score.dtype).max)
            worst = alive.shape[1] - 1 - score.flip(1).argsort(dim=1, stable=True)[:, : most[t]]
            gone = slot[: most[t]] < drops[:, t : t + 1]
            alive.scatter_(1, worst, alive.gather(1, worst) & ~gone)
            total = total - (pairwise[number, worst] * gone[:, :, None]).sum(1)
        first = (~alive).to(torch.int8).argsort(dim=1, stable=True)[:, : problem.most]
        order = torch.where(alive.gather(1, first), first, -1)
        return ordered_solution(problem, order, solver=self, started=started, elimination_rounds=rounds)

    def plan(self, tokens: int, k: int) -> list[int]:
        """How many tokens each round drops to come from `tokens` to `k`."""
        out: list[int] = []
        divisor = self.divisor
        while tokens > k:
            drop = max(1, min(tokens - k, tokens // divisor))
            divisor = drop if self.reuse else divisor
            out.append(drop)
            tokens -= drop
        return out
