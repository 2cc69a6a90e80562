"""Transport on a line: a control."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import spoil
from pruneopt.parts.solvers.linearised import without_means
from pruneopt.parts.solvers.north_west import in_order
from pruneopt.problems.certificate import above_cheapest
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Sliced(TransportSolver):
    """The best of `slices` plans, each optimal for the cost of one direction: sort both sides and pair.

    Without its row and column means the cost is a sum of products `s_k u_ik v_jk` (for squared distances, of
    coordinates); a direction keeps one of them, and of `- x_i y_j` the sorted plan is the optimum.  Feasible,
    with the potentials of its line, so the certificate shows what one direction is worth.  float64; the
    decomposition is O(NM min(N,M)).

    Sources: one direction: Mahey, Chapel, Gasso, Bonet, Courty 2023; directions of a cost: Torgerson 1952.
    """

    name: ClassVar[str] = "sliced"
    source: ClassVar[str] = "control: the best sorted plan, after Mahey et al., NeurIPS 2023"
    accuracy: ClassVar[float] = 0.6  # of the cost range, on the instances of the conformance suite
    slices: int = param(4, low=1, doc="directions that are tried")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `HEURISTIC`; the gap says how bad it is."""
        begin = time.perf_counter()
        here = problem.detached()
        low, cost, a, b = above_cheapest(here)
        _, cols, rest = without_means(cost, a, b=b)
        # One unit for all scales; a decomposition does not end on what is not finite.
        unit = cost.amax((1, 2))[:, None, None]
        clean = (rest / torch.where(unit > 0, unit, 1)).nan_to_num(0, 0, 0)
        weighted = a.sqrt()[:, :, None] * clean * b.sqrt()[:, None, :]
        u, size, v = torch.linalg.svd(weighted, full_matrices=False)
        x, y = _coordinates(u, a), _coordinates(-v.transpose(1, 2), b)
        best, plan, g = torch.full_like(low, torch.inf), torch.zeros_like(cost), torch.zeros_like(b)
        for k in range(min(self.slices, size.shape[1])):
            there, price = _sorted_plan(x[:, :, k], y[:, :, k], a=a, b=b)
            paid = (there * cost).sum((1, 2))
            better = (paid < best) | (best == torch.inf)
            best = torch.where(better, paid, best)
            plan = torch.where(better[:, None, None], there, plan)
            g = torch.where(better[:, None], price * size[:, k, None] * unit[:, 0], g)
        g = cols + g
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=spoil(here, plan),
            f=_tight(cost, g, b=b) + low[:, None],
            g=g,
            rounds=torch.zeros(len(a), dtype=torch.int64, device=a.device),
            ended=(Status.HEURISTIC,) * len(a),
            order="both",
            solver=self.name,
        )


def _coordinates(vectors: Tensor, mass: Tensor) -> Tensor:
    return torch.where((mass > 0)[:, :, None], vectors / mass.clamp_min(1e-300).sqrt()[:, :, None], 0.0)


def _sorted_plan(x: Tensor, y: Tensor, *, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The optimum of `- x_i y_j` `[B,N,M]`, and its target potential `[B,M]`."""
    from_, to = x.argsort(dim=1, stable=True), y.argsort(dim=1, stable=True)
    first, second = a.gather(1, from_), b.gather(1, to)
    plan = in_order(first, second)
    plan = torch.zeros_like(plan).scatter_(1, from_[:, :, None].expand_as(plan), plan)
    plan = torch.zeros_like(plan).scatter_(2, to[:, None, :].expand_as(plan), plan)
    # Between neighbouring targets the price falls by the step times the source that serves both.
    ends = second.cumsum(1)[:, :-1].contiguous()
    at = torch.searchsorted(first.cumsum(1).contiguous(), ends).clamp_max(x.shape[1] - 1)
    steps = -x.gather(1, from_).gather(1, at) * y.gather(1, to).diff(dim=1)
    price = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    return plan, torch.zeros_like(price).scatter_(1, to, price)


def _tight(cost: Tensor, g: Tensor, *, b: Tensor) -> Tensor:
    return (cost - g[:, None, :]).masked_fill((b == 0)[:, None, :], torch.inf).amin(2)
