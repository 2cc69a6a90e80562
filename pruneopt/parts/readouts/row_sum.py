"""Row sums of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Part, Readout
from pruneopt.parts.readouts._common import row_mass
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class RowSum(Readout):
    """`I_i = sum_j P_ij`, `[B,N]`, in units of mass; higher is kept.

    TopV's readout as printed.  Where the source side is exact (Sinkhorn that updates it last, any exact
    solver, the feasible controls) every row sums to the source marginal whatever the cost is, after any
    number of rounds: the closing update is `u = a / (K v)`, so `sum_j u_i K_ij v_j = a_i`.
    `ignores_cost` says so.
    """

    name: ClassVar[str] = "row_sum"
    source: ClassVar[str] = "TopV (CVPR 2025), Figure 1 and Algorithm 1"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        return row_mass(solution)

    def ignores_cost(self, solver: Part) -> str | None:
        last = getattr(solver, "last", None)
        if last == "source":
            why = f"{solver.name} updates the source side last, so every row sums to the source marginal"
        elif last is None and "relaxed" not in solver.tags:
            why = f"{solver.name} returns a feasible plan, whose rows sum to the source marginal"
        else:
            return None
        return (
            f"row_sum cannot depend on the cost here: {why} whatever the cost is. Read dual_source or "
            "row_cost instead, or solve with one_sided."
        )
