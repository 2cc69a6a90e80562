"""Shared by readouts that need the epsilon of the solver or fill in tokens without mass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.certificate import c_transform
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, rows_of


def blocks(problem: TransportProblem, solution: TransportSolution) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Sources, cost `[B,n,M]` and plan `[B,n,M]` of all sources at once, or by rows where one of them is."""
    if not isinstance(problem.cost, Unstored) and not isinstance(solution.plan, Unstored):
        yield slice(None), problem.cost, solution.plan
        return
    plan = rows_of(solution.plan)
    for part, cost in rows_of(problem.cost).blocks():
        yield part, cost, plan.block(part)


def row_mass(solution: TransportSolution) -> Tensor:
    """`[B,N]` mass that each source sends."""
    plan = solution.plan
    if not isinstance(plan, Unstored):
        return plan.sum(2)
    return plan.rows.product(plan.rows.like.new_ones(plan.shape[0], plan.shape[2]))


def epsilon_of(solution: TransportSolution, readout: str) -> Tensor:
    """`[B]` the epsilon that an entropic solver used, in cost units."""
    eps = solution.stats.get("epsilon")
    if eps is None:
        raise ProblemError(
            f"{readout} needs the epsilon of an entropic solver, which {solution.solver or 'this solver'} "
            "does not have; use sinkhorn or one_sided, or read row_cost or dual_source"
        )
    return eps


def one_sided_mass(problem: TransportProblem, f: Tensor | None, *, eps: Tensor) -> Tensor:
    """`[B,N]` row sums of `b_j softmax_i((f_i - C_ij) / eps)`, the plan after an exact target update."""
    if isinstance(problem.cost, Unstored):
        return _mass_by_rows(problem.cost, problem, f=f, eps=eps)
    score = -problem.cost
    if f is not None:
        score = (score + f[:, :, None]).to(problem.cost.dtype)
    score = score / eps[:, None, None].to(score.dtype)
    score = score.masked_fill((problem.a == 0)[:, :, None], -torch.inf)
    return torch.bmm(score.softmax(1), problem.b[:, :, None])[:, :, 0]


def _mass_by_rows(cost: Unstored, problem: TransportProblem, *, f: Tensor | None, eps: Tensor) -> Tensor:
    """The same, a block of targets at a time."""
    start = torch.zeros_like(problem.a) if f is None else f.to(problem.a.dtype)
    start = start.masked_fill(problem.a == 0, -torch.inf)
    mass = torch.zeros_like(problem.a)
    for part, entries in cost.rows.turned().blocks():
        score = (start[:, None, :] - entries) / eps[:, None, None].to(entries.dtype)
        mass += torch.bmm(problem.b[:, None, part], score.softmax(2))[:, 0]
    return mass


def source_dual(problem: TransportProblem, solution: TransportSolution, *, readout: str) -> Tensor:
    """`[B,N]` float64 source potential; tokens without mass get the c-transform of the target side."""
    if solution.f is not None and isinstance(solution.plan, Unstored):
        empty = problem.a == 0
        if not bool(empty.any()):
            return solution.f.double()
        g = solution.certificate.g
        g = g if problem.col_mask is None else g.masked_fill(~problem.col_mask, -torch.inf)
        parts = rows_of(problem.cost).blocks()
        priced = [c_transform(cost.double(), g, real=None, rows=True) for _, cost in parts]
        return torch.where(empty, torch.cat(priced, 1), solution.f.double())
    if solution.f is None or solution.g is None:
        raise ProblemError(
            f"{readout} needs dual potentials, which {solution.solver or 'this solver'} does not return; "
            "use sinkhorn, emd, lp or exact"
        )
    f, g = solution.f.double(), solution.g.double()
    real = problem.pair_mask
    tight = c_transform(problem.cost.double(), g, real=real, rows=True)
    return torch.where(problem.a > 0, f, tight)
