"""Shared by readouts that need the epsilon of the solver or fill in tokens without mass."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.certificate import c_transform
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


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
    score = -problem.cost
    if f is not None:
        score = (score + f[:, :, None]).to(problem.cost.dtype)
    score = score / eps[:, None, None].to(score.dtype)
    score = score.masked_fill((problem.a == 0)[:, :, None], -torch.inf)
    return torch.bmm(score.softmax(1), problem.b[:, :, None])[:, :, 0]


def source_dual(problem: TransportProblem, solution: TransportSolution, *, readout: str) -> Tensor:
    """`[B,N]` float64 source potential; tokens without mass get the c-transform of the target side."""
    if solution.f is None or solution.g is None:
        raise ProblemError(
            f"{readout} needs dual potentials, which {solution.solver or 'this solver'} does not return; "
            "use sinkhorn, emd, lp or exact"
        )
    f, g = solution.f.double(), solution.g.double()
    real = problem.pair_mask
    tight = c_transform(problem.cost.double(), g, real=real, rows=True)
    return torch.where(problem.a > 0, f, tight)
