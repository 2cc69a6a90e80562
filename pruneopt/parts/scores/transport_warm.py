"""Transport that goes on where the previous cut of the same method ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import TransportSolver, part_param
from pruneopt.parts.scores.transport import Transport
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.certificate import c_transform
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals


@dataclass(frozen=True)
class TransportWarm(Transport):
    """`transport` whose rounds begin at the source potentials of the previous cut, `[B,N]`; higher is kept.

    Those are minus the importance that the previous cut gave to the tokens it kept, where its readout was
    `dual_source` over similar costs; the target potentials are their c-transform.  The answer is that of
    `transport` to the tolerance of the solver, whatever the start is: a good one only takes fewer rounds.
    Hence a tolerance is asked for, which `transport` may leave out.

    Source: warm starts of Sinkhorn's iteration, Thornton and Cuturi 2023.
    """

    name: ClassVar[str] = "transport_warm"
    source: ClassVar[str] = "Thornton and Cuturi, AISTATS 2023 (initialising Sinkhorn)"
    tags: ClassVar[frozenset[str]] = frozenset({"host"})  # a tolerance is looked at
    solver: TransportSolver = part_param(
        TransportSolver, {"kind": "sinkhorn", "rounds": 2000, "tolerance": 1e-4}, doc="what finds the plan"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.solver, Sinkhorn) or self.solver.tolerance is None:
            raise SpecError(
                "transport_warm.solver must be sinkhorn with a `tolerance`: after a fixed number of rounds "
                "the answer would depend on where they began; set tolerance, or use the score transport"
            )
        if self.readout.name != "dual_source":
            raise SpecError(
                f"transport_warm.readout is {self.readout.name}; only dual_source leaves potentials for the "
                "next cut to begin from; set it, or use the score transport"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"importance"}

    def solved(self, problem: TransportProblem, signals: Signals) -> TransportSolution:
        assert isinstance(self.solver, Sinkhorn)
        return self.solver.solve(problem, start=warm_start(problem, -signals["importance"].double()))


def warm_start(problem: TransportProblem, f: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials to begin from, given those of the source side `[B,N]` alone."""
    f = f.masked_fill(problem.a == 0, -float("inf"))
    return f, c_transform(problem.cost.double(), f, real=problem.pair_mask, rows=False)
