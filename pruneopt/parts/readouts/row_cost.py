"""What it costs to move a token, per unit of its mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Readout
from pruneopt.parts.readouts._common import blocks
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class RowCost(Readout):
    """`I_i = -sum_j P_ij C_ij / sum_j P_ij`, `[B,N]`, in cost units; higher (cheaper to move) is kept.

    A token without mass is read as moving to its cheapest target.  Source: docs/methods/topv.md.
    """

    name: ClassVar[str] = "row_cost"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        found = [self._read(problem, cost, plan=plan) for _, cost, plan in blocks(problem, solution)]
        out = found[0] if len(found) == 1 else torch.cat(found, 1)
        return out if problem.row_mask is None else out.masked_fill(~problem.row_mask, 0)

    def _read(self, problem: TransportProblem, cost: Tensor, *, plan: Tensor) -> Tensor:
        mass = plan.sum(2)
        per_unit = torch.einsum("bnm,bnm->bn", plan, cost.to(plan.dtype)) / mass.clamp_min(1e-30)
        if problem.col_mask is not None:
            cost = cost.masked_fill(~problem.col_mask[:, None, :], torch.inf)
        return torch.where(mass > 0, -per_unit, -cost.amin(2).to(plan.dtype))
