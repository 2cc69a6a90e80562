"""How much of a token stays where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import Readout
from pruneopt.parts.readouts._common import row_mass
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored


@dataclass(frozen=True)
class Diagonal(Readout):
    """`I_i = P_ii / sum_j P_ij`, `[B,N]` in [0,1]; higher (maps to itself) is kept.

    Only for sources and targets that are the same tokens in the same order.  As unstable as `row_max`.
    Zero for tokens without mass.
    """

    name: ClassVar[str] = "diagonal"
    tags: ClassVar[frozenset[str]] = frozenset({"reads_shape"})

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        plan = solution.plan
        if plan.shape[1] != plan.shape[2]:
            raise ProblemError(f"diagonal needs as many targets as sources, got {list(plan.shape[1:])}")
        own = plan.rows.own() if isinstance(plan, Unstored) else plan.diagonal(dim1=1, dim2=2)
        return own / row_mass(solution).clamp_min(1e-30)
