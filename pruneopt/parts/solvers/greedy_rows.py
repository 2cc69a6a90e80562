"""Each source in turn takes the cheapest room that is left: a control."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import TransportSolver
from pruneopt.parts.solvers._common import spoil
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class GreedyRows(TransportSolver):
    """Rows in index order send their mass to their cheapest targets with room left; ties to the lower index.

    A feasible plan that depends on the order of the tokens: the control that any real solver must beat.
    O(N M log M) for the sort, then one step per row; float64, any device.
    """

    name: ClassVar[str] = "greedy_rows"
    source: ClassVar[str] = "control"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    accuracy: ClassVar[float] = 0.5  # of the cost range, on the instances of the conformance suite

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `HEURISTIC`; the gap comes from zero potentials."""
        begin = time.perf_counter()
        here = problem.detached()
        cost = here.cost
        if problem.col_mask is not None:
            cost = cost.masked_fill(~problem.col_mask[:, None, :], torch.inf)
        order = cost.argsort(dim=2, stable=True)
        a, room = here.a.double(), here.b.double().clone()
        plan = torch.zeros(cost.shape, dtype=torch.float64, device=cost.device)
        for i in range(cost.shape[1]):
            there = room.gather(1, order[:, i])
            before = there.cumsum(1) - there
            sent = torch.minimum((a[:, i, None] - before).clamp_min(0), there)
            plan[:, i].scatter_(1, order[:, i], sent)
            room.sub_(plan[:, i])
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=spoil(here, plan),
            rounds=torch.zeros(len(a), dtype=torch.int64, device=a.device),
            ended=(Status.HEURISTIC,) * len(a),
            order="both",
            solver=self.name,
        )
