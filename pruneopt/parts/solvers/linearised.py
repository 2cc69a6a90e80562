"""The first order of an entropic plan in the cost: a control."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver
from pruneopt.parts.solvers._common import spoil
from pruneopt.problems.certificate import above_cheapest
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Linearised(TransportSolver):
    """`P_ij = a_i b_j (1 - D_ij / max D)`, D the cost without its row and column means.

    Sinkhorn's plan to first order in 1/epsilon, at the smallest epsilon that leaves no mass negative.  Both
    marginals are exact because D has means of zero.  Potentials are the means, so `dual_source` ranks by the
    mean cost of a token: what any solver must add to.  O(NM), float64, any device.
    """

    name: ClassVar[str] = "linearised"
    source: ClassVar[str] = "control: Cuturi, NeurIPS 2013, to first order in 1/epsilon"
    accuracy: ClassVar[float] = 0.6  # of the cost range, on the instances of the conformance suite

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `HEURISTIC`; the gap says how bad it is."""
        begin = time.perf_counter()
        here = problem.detached()
        low, cost, a, b = above_cheapest(here)
        rows, cols, rest = without_means(cost, a, b=b)
        seen = rest.masked_fill(~((a > 0)[:, :, None] & (b > 0)[:, None, :]), 0)
        top = seen.amax((1, 2))
        share = 1 - seen / torch.where(top > 0, top, 1)[:, None, None]
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=spoil(here, share.clamp_min(0) * a[:, :, None] * b[:, None, :]),
            f=rows + low[:, None],
            g=cols,
            rounds=torch.zeros(len(a), dtype=torch.int64, device=a.device),
            ended=(Status.HEURISTIC,) * len(a),
            order="both",
            solver=self.name,
        )


def without_means(cost: Tensor, a: Tensor, *, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row means `[B,N]` and column means `[B,M]` that share the grand mean, and the cost without both."""
    rows = torch.einsum("bnm,bm->bn", cost, b)
    cols = torch.einsum("bnm,bn->bm", cost, a)
    half = (a * rows).sum(1, keepdim=True) / 2
    rows, cols = rows - half, cols - half
    return rows, cols, cost - rows[:, :, None] - cols[:, None, :]
