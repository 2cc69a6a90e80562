"""Transport with only the targets constrained: one softmax."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver, param
from pruneopt.problems.pooled import Gibbs, small_blocks
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, rows_of


@dataclass(frozen=True)
class OneSided(TransportSolver):
    """`P_ij = b_j softmax_i(-C_ij / eps)`: entropic transport without the source marginal, closed form.

    Columns are exact; rows are free, so their sums say how much each source is asked for.  The source
    marginal plays no part beyond its support.  Source: docs/methods/topv.md, item 5; the semi-relaxed limit
    of unbalanced Sinkhorn (Chizat et al. 2018).
    """

    name: ClassVar[str] = "one_sided"
    source: ClassVar[str] = "semi-relaxed entropic transport (Chizat et al. 2018), closed form"
    tags: ClassVar[frozenset[str]] = frozenset({"relaxed", "rows"})
    epsilon: float = param(0.05, above=0, doc="entropic regularisation")
    epsilon_scale: str = param(
        "range",
        choices=("range", "absolute"),
        doc="epsilon as a share of the cost range, or as is",
    )

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Never iterates; status `CLOSED_FORM`, and the gap says what dropping the source side costs."""
        begin = time.perf_counter()
        low, high = problem.span()
        width = torch.where(high > low, high - low, torch.ones_like(low))
        eps = width * self.epsilon if self.epsilon_scale == "range" else torch.full_like(width, self.epsilon)
        mass = torch.zeros_like(problem.a).masked_fill(problem.a == 0, -torch.inf)
        state = self._by_rows if isinstance(problem.cost, Unstored) else self._whole
        plan, log_sums = state(problem, mass, eps=eps)
        g = eps[:, None] * (problem.b.log() - log_sums)
        return TransportSolution(
            time.perf_counter() - begin,
            {"epsilon": eps},
            problem=problem,
            plan=plan,
            f=mass.double(),
            g=g.double(),
            rounds=torch.zeros(len(eps), dtype=torch.int64, device=eps.device),
            ended=(Status.CLOSED_FORM,) * len(eps),
            order="target",
            solver=self.name,
        )

    def _whole(self, problem: TransportProblem, mass: Tensor, *, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The plan, and `log sum_i exp(-C_ij / eps)` over the sources with mass, `[B,M]`."""
        score = -problem.cost / eps[:, None, None]
        score = score.masked_fill((mass < 0)[:, :, None], -torch.inf)
        return score.softmax(1) * problem.b[:, None, :], score.logsumexp(1)

    def _by_rows(self, problem: TransportProblem, mass: Tensor, *, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The same, the plan as a formula over the cost; one pass finds the sums."""
        cost, per = rows_of(problem.cost), eps[:, None, None]
        blocks = small_blocks(cost.turned())
        sums = torch.cat([c.neg_().add_(mass[:, None, :]).div_(per).logsumexp(2) for _, c in blocks], 1)
        g = eps[:, None] * (problem.b.log() - sums)
        return Unstored(Gibbs(cost, mass, g, eps)), sums
