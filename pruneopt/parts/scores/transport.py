"""Transport as a way to score: the readout of a plan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import CostBlindReadoutWarning, SpecError
from pruneopt.parts import (
    CostTerm,
    Marginal,
    Part,
    Readout,
    Score,
    TransportSolver,
    Weighted,
    each_param,
    part_param,
    sum_param,
)
from pruneopt.parts._ledger import ledger
from pruneopt.parts._sums import added, added_rows, combine_anchors
from pruneopt.problems import unstored
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, matrix_bytes
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Transport(Score):
    """What `readout` makes of the plan from the source onto the target mass, `[B,N]`; higher is kept.

    Sources are the visual tokens.  So are the targets, unless all cost terms are of shape `anchor`: then
    those external points are, all alike, and `marginals.target` stays `uniform`.  The solution, with its
    certificate, goes into the evidence of the selection.  `problem.kind: transport` is this score alone in a
    top-k problem.
    """

    name: ClassVar[str] = "transport"
    cost: tuple[Weighted, ...] = sum_param(CostTerm, {"feature": "feature_sq_l2"}, doc="summands of the cost")
    marginals: tuple[Weighted, ...] = each_param(
        Marginal, {"source": "uniform", "target": "uniform"}, doc="mass of both sides"
    )
    solver: TransportSolver = part_param(TransportSolver, "sinkhorn", doc="what finds the plan")
    readout: Readout = part_param(Readout, "dual_source", doc="what makes an importance of it")

    def __post_init__(self) -> None:
        super().__post_init__()
        outside = [s.label for s in self.cost if s.external]
        if outside and len(outside) < len(self.cost):
            raise SpecError(
                f"transport.cost mixes targets: {', '.join(outside)} reach external points and the others "
                "tokens; keep one sort, and add the importances of two transport scores instead"
            )
        _, target = (s.part for s in self.marginals)
        if outside and target.name != "uniform":
            raise SpecError(
                f"transport.marginals.target is {target.name}, a mass of tokens, but the targets of "
                f"{', '.join(outside)} are external points; leave it uniform"
            )

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        book = ledger()
        source, target = (s.part for s in self.marginals)
        rows = "rows" in self.solver.tags
        problem = transport_problem(
            self.cost, signals, source=source, target=target, rows=rows, check=book.check
        )
        book.lap("cost")
        solution = self.solved(problem, signals)
        book.solved.append((self, solution))
        book.lap("solve")
        blind = self.readout.ignores_cost(self.solver)
        if blind:
            book.notes.append(blind)
            warnings.warn(blind, CostBlindReadoutWarning, stacklevel=2)
        importance = self.readout(problem, solution)
        book.lap("readout")
        return importance

    def solved(self, problem: TransportProblem, signals: Signals) -> TransportSolution:
        """The plan; `signals` are there for parts that begin from what they say."""
        return self.solver.solve(problem)


def transport_problem(
    cost: Sequence[Weighted],
    signals: Signals,
    *,
    source: Part,
    target: Part,
    rows: bool = False,
    check: bool = True,
) -> TransportProblem:
    """The transport problem of some cost terms and two marginals on these signals.

    `rows` says that the solver reads rows: then a cost that would be too large a matrix is stated by rows.
    """
    mask = signals.given_mask
    a = source(signals.view(source.needs))  # type: ignore[operator]
    if any(s.external for s in cost if s.weight):
        reached = combine_anchors(cost, signals)
        assert reached is not None
        points = (reached < torch.inf).any(2)
        return TransportProblem.build(
            reached.masked_fill(reached == torch.inf, 0).transpose(1, 2),
            a=a,
            b=None,
            row_mask=mask,
            col_mask=points,
            check=check,
        )
    b = target(signals.view(target.needs))  # type: ignore[operator]
    by_rows = rows and matrix_bytes(signals.batch, signals.tokens) > unstored.WHOLE
    pairs = Unstored(added_rows(cost, signals)) if by_rows else added(cost, signals, pairwise=True)
    return TransportProblem.build(pairs, a=a, b=b, row_mask=mask, col_mask=mask, check=check)
