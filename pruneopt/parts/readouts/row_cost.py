"""What it costs to move a token, per unit of its mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Readout
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class RowCost(Readout):
    """`I_i = -sum_j P_ij C_ij / sum_j P_ij`, `[B,N]`, in cost units; higher (cheaper to move) is kept.

    A token without mass is read as moving to its cheapest target.  Source: docs/methods/topv.md.
    """

    name: ClassVar[str] = "row_cost"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        plan, cost = solution.plan, problem.cost
        mass = plan.sum(2)
        per_unit = torch.einsum("bnm,bnm->bn", plan, cost.to(plan.dtype)) / mass.clamp_min(1e-30)
        real = problem.pair_mask
        cheapest = (cost if real is None else cost.masked_fill(~real, torch.inf)).amin(2).to(plan.dtype)
        out = torch.where(mass > 0, -per_unit, -cheapest)
        return out if problem.row_mask is None else out.masked_fill(~problem.row_mask, 0)
