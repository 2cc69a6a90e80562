"""Row sums after one closing target update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Readout
from pruneopt.parts.readouts._common import epsilon_of, one_sided_mass, source_dual
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class RowSumTargetLast(Readout):
    """Row sums of `b_j softmax_i((f_i - C_ij) / eps)`, `[B,N]`, in units of mass; higher is kept.

    The plan of the solver after one more target update in the log domain, so columns are exact and rows are
    not.  What it shows besides the source marginal is only the part of the marginal constraint that the
    solver has not yet met: relative spread 4e-2 after 3 rounds at eps 0.1, 3e-12 after 100.  More rounds
    mean less signal.  Needs an entropic solver.  Source: docs/methods/topv.md, preset `topv_target_last`.
    """

    name: ClassVar[str] = "row_sum_target_last"
    source: ClassVar[str] = "TopV (CVPR 2025), reading with the target side updated last"

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        eps = epsilon_of(solution, self.name)
        return one_sided_mass(problem, source_dual(problem, solution, readout=self.name), eps=eps)
