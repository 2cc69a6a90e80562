"""Mass that targets ask of each source when only the targets are constrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Readout
from pruneopt.parts.readouts._common import epsilon_of, one_sided_mass, row_mass
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class OneSidedMass(Readout):
    """Row sums of `b_j softmax_i(-C_ij / eps)`, `[B,N]`, in units of mass; higher is kept.

    With the solver `one_sided` these are the row sums of its plan; after another entropic solver the same
    closed form is evaluated at that solver's epsilon and its plan is not looked at.  A source-only cost acts
    strongly here: it multiplies the whole row.  Source: docs/methods/topv.md, preset `topv_one_sided`.
    """

    name: ClassVar[str] = "one_sided_mass"
    source: ClassVar[str] = "TopV (CVPR 2025), reading as contribution of source i to building target j"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        if solution.solver == "one_sided":
            return row_mass(solution)
        return one_sided_mass(problem, None, eps=epsilon_of(solution, self.name))
