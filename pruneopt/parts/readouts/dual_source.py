"""The price of a token: minus its dual potential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Part, Readout
from pruneopt.parts.readouts._common import source_dual
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class DualSource(Readout):
    """`I_i = -(f_i - mean_a f)`, `[B,N]` float64, in cost units; higher is kept.

    `f_i` is how much the total cost grows per unit of mass added at source i (and taken from all others in
    proportion), so expensive tokens are dropped first.  Centred by the source marginal, because potentials
    are only defined up to a constant; beyond that a linear programme may still have several duals, and the
    entropic one is the tie-break to prefer.  A source-only cost enters exactly additively.
    A token without mass is priced by the c-transform of the target potential.
    Source: docs/methods/topv.md, preset `topv_dual`.
    """

    name: ClassVar[str] = "dual_source"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        f, a = source_dual(problem, solution, readout=self.name), problem.a.double()
        return (a * f).sum(1, keepdim=True) / a.sum(1, keepdim=True) - f

    def ignores_cost(self, solver: Part) -> str | None:
        if solver.name != "one_sided":
            return None
        return (
            "dual_source cannot depend on the cost here: one_sided has no source constraint, so its source "
            "dual is zero for every token. Read one_sided_mass, or solve with sinkhorn."
        )
