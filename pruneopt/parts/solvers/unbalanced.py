"""Entropic transport whose marginals may be missed at a price."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers import _scaling as scaling
from pruneopt.problems.certificate import above_cheapest
from pruneopt.problems.relaxed.unbalanced import Unbalanced as Stated
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Unbalanced(TransportSolver):
    """`min <P,C> + r KL(P 1|a) + s KL(P^T 1|b) + eps KL(P|a b^T)`: a token far from all sends less.

    A round is that of Sinkhorn with its exponent damped,
    `g <- s/(s+eps) softmin(C - f)`, `f <- r/(r+eps) softmin(C - g)`, from f = 0, source last; it contracts by
    at least `(1 + eps/r)^-1 (1 + eps/s)^-1`.  Costs count above the cheapest pair.  `reach` and epsilon are
    shares of each problem's cost range, so scaling or shifting a cost changes nothing.  Value, bound and gap
    are those of the unbalanced problem without the entropy, in units above the cheapest pair.

    `soft`: `both` marginals may be missed, or `source` only, with exact targets: between `one_sided` (reach
    0) and `sinkhorn` (reach infinite).  float32 kernels from epsilon 1/60 of the range, the log domain below.

    Source: Chizat, Peyre, Schmitzer, Vialard 2018.
    """

    name: ClassVar[str] = "unbalanced"
    source: ClassVar[str] = "Chizat, Peyre, Schmitzer, Vialard, Math. Comp. 2018"
    tags: ClassVar[frozenset[str]] = frozenset({"relaxed"})
    epsilon: float = param(0.02, above=0, doc="entropic regularisation, as a share of the cost range")
    reach: float = param(0.3, above=0, doc="price of a missed unit of mass, as a share of the cost range")
    soft: str = param("both", choices=("both", "source"), doc="marginals that may be missed")
    rounds: int = param(100, low=1, doc="rounds; all are run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.reach):
            raise SpecError("reach is infinite, which is balanced transport; use sinkhorn", key="reach")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `ROUNDS_DONE`; the gap says what epsilon and the rounds leave."""
        begin = time.perf_counter()
        here = problem.detached()
        low, cost, a, b = above_cheapest(here)
        width = here.cost_range().double()
        eps, reach = width * self.epsilon, width * self.reach
        damp = self.reach / (self.reach + self.epsilon), 1.0
        damp = damp[0], damp[0 if self.soft == "both" else 1]
        run = self._scaled if self.epsilon * scaling.plain_limit(here.cost.dtype) >= 1 else self._log
        f, g = run(cost.to(here.cost.dtype), a, b=b, eps=eps, damp=damp)
        plan = ((f[:, :, None] + g[:, None, :] - cost) / eps[:, None, None]).exp_()
        plan.mul_(a[:, :, None]).mul_(b[:, None, :])
        hard = torch.full_like(reach, math.inf)
        return TransportSolution(
            time.perf_counter() - begin,
            {"epsilon": eps, "reach": reach},
            problem=problem,
            plan=plan.to(here.cost.dtype),
            f=f + low[:, None],
            g=g,
            rounds=torch.full((len(a),), self.rounds, dtype=torch.int64, device=a.device),
            ended=(Status.ROUNDS_DONE,) * len(a),
            order="neither",
            solver=self.name,
            relaxation=Stated(reach, reach if self.soft == "both" else hard),
        )

    def _scaled(
        self, cost: Tensor, a: Tensor, *, b: Tensor, eps: Tensor, damp: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """The rounds as products with one kernel, whose entries do not leave the dtype."""
        right, left = scaling.products(cost.div(-eps[:, None, None].to(cost.dtype)).exp_())
        a, b = a.to(cost.dtype), b.to(cost.dtype)
        u = torch.ones_like(a)
        for _ in range(self.rounds):
            v = left(a * u) ** -damp[1]
            u = right(b * v) ** -damp[0]
        return eps[:, None] * u.double().log(), eps[:, None] * v.double().log()

    def _log(
        self, cost: Tensor, a: Tensor, *, b: Tensor, eps: Tensor, damp: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """The same in the log domain, in float64."""
        score = -cost.double() / eps[:, None, None]
        u, log_a, log_b = torch.zeros_like(a), a.log(), b.log()
        for _ in range(self.rounds):
            v = -damp[1] * (score + (log_a + u)[:, :, None]).logsumexp(1)
            u = -damp[0] * (score + (log_b + v)[:, None, :]).logsumexp(2)
        return eps[:, None] * u, eps[:, None] * v
