"""A feasible plan that never looks at the cost: a control."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver
from pruneopt.parts.solvers._common import spoil
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class NorthWest(TransportSolver):
    """The north-west corner rule: mass in index order, `P_ij = |[A_i-1, A_i] cap [B_j-1, B_j]|`.

    `A`, `B` are the cumulated marginals.  Optimal for convex costs of sorted points on a line, a control
    everywhere else: marginals are exact, the cost is ignored.  float64, any device.
    """

    name: ClassVar[str] = "north_west"
    source: ClassVar[str] = "Hoffman 1963"
    tags: ClassVar[frozenset[str]] = frozenset({"cost_blind"})

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `HEURISTIC`; the gap comes from zero potentials."""
        begin = time.perf_counter()
        here = problem.detached()
        a, b = here.a.double(), here.b.double()
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=spoil(here, in_order(a, b)),
            rounds=torch.zeros(len(a), dtype=torch.int64, device=a.device),
            ended=(Status.HEURISTIC,) * len(a),
            order="both",
            solver=self.name,
        )


def in_order(a: Tensor, b: Tensor) -> Tensor:
    """`[B,N,M]` the plan that moves mass in index order, from masses `[B,N]` and `[B,M]` of equal sums."""
    row_end, col_end = a.cumsum(1), b.cumsum(1)
    high = torch.minimum(row_end[:, :, None], col_end[:, None, :])
    low = torch.maximum((row_end - a)[:, :, None], (col_end - b)[:, None, :])
    return (high - low).clamp_min(0)
