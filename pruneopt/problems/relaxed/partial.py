"""Partial transport: move a share of the mass, whichever is cheapest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.problems.certificate import PROVED, Certificate, above_cheapest, c_transform
from pruneopt.problems.relaxed._relaxation import Relaxation
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Partial(Relaxation):
    """`min <P,C>` with `P 1 <= a`, `P^T 1 <= b` and total mass `mass`; 1 is balanced transport.

    Its dual is `max m l - a.u - b.v` with `l - u_i - v_j <= C_ij` and `u, v >= 0`.  For given `u` the best
    `v_j = max(l - min_i(C_ij + u_i), 0)` and then the best `l` is the quantile of those minima at which
    `mass` of `b` lies below.  Potentials are `f = l - u` and `g = -v`.

    Sources: Caffarelli, McCann 2010; Figalli 2010.
    """

    mass: float

    def certify(self, problem: TransportProblem, plan: Tensor, *, g: Tensor | None) -> Certificate:
        low, cost, a, b = above_cheapest(problem)
        plan = plan.double()
        total = plan.sum((1, 2))
        missed = (total - self.mass).abs()
        row_error = (plan.sum(2) - a).clamp_min(0).sum(1) + missed
        col_error = (plan.sum(1) - b).clamp_min(0).sum(1) + missed
        paid = (self.rounded(plan, a, b=b) * cost).sum((1, 2))
        paid = torch.where(plan.isfinite().flatten(1).all(1), paid, torch.full_like(paid, math.nan))
        v = torch.zeros_like(b) if g is None else (-g.double()).clamp_min(0)
        broken = ~((v < math.inf) | (b == 0)).all(1)
        v = v.masked_fill(broken[:, None] | (b == 0), 0)
        u, _ = self._prices(cost, v, mass=a, other=b, rows=True)
        v, level = self._prices(cost, u, mass=b, other=a, rows=False)
        bound = (self.mass * level - (a * u).sum(1) - (b * v).sum(1)).clamp_min(0)
        bound = bound.masked_fill(broken, -math.inf)
        base = self.mass * low
        return Certificate(
            base + paid, base + bound, paid - bound, row_error, col_error, PROVED * paid.detach(),
            (level + low)[:, None] - u, -v,
        )  # fmt: skip

    def rounded(self, plan: Tensor, a: Tensor, *, b: Tensor) -> Tensor:
        """Scaled below both marginals and the asked mass; what is missing goes to the room that is left."""
        for mass, axis in ((a, 2), (b, 1)):
            sent = plan.sum(axis)
            scale = torch.where(sent > mass, mass / sent.clamp_min(1e-300), torch.ones_like(sent))
            plan = plan * scale.unsqueeze(axis)
        total = plan.sum((1, 2))
        plan = plan * (self.mass / total.clamp_min(self.mass))[:, None, None]
        row_room, col_room = (a - plan.sum(2)).clamp_min(0), (b - plan.sum(1)).clamp_min(0)
        short = (self.mass - plan.sum((1, 2))).clamp_min(0)
        short = short.masked_fill(short <= 1e-14, 0)  # rounding; next to a cost of 1e15 it would decide
        shares = row_room.sum(1) * col_room.sum(1)
        scale = short / shares.clamp_min(1e-300)
        return plan + row_room[:, :, None] * (col_room * scale[:, None])[:, None, :]

    def _prices(
        self, cost: Tensor, prices: Tensor, *, mass: Tensor, other: Tensor, rows: bool
    ) -> tuple[Tensor, Tensor]:
        """The best prices `>= 0` of one side `[B,n]` for those of the other, and the level `l [B]`."""
        there = other > 0  # an atom without mass constrains nothing
        asked = (-prices).masked_fill(~there, -math.inf)
        least = c_transform(cost, asked, real=None, rows=rows)
        order = least.masked_fill(mass == 0, math.inf).argsort(dim=1, stable=True)
        below = mass.gather(1, order).cumsum(1)
        at = (below < self.mass - 1e-12).sum(1, keepdim=True).clamp_max(mass.shape[1] - 1)
        level = least.gather(1, order.gather(1, at)).squeeze(1)
        return (level[:, None] - least).clamp_min(0), level
