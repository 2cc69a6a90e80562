"""Unbalanced transport: a marginal may be missed, at a price."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.problems.certificate import PROVED, Certificate, above_cheapest, c_transform
from pruneopt.problems.relaxed._relaxation import Relaxation
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Unbalanced(Relaxation):
    """`min <P, C - low> + r KL(P 1 | a) + s KL(P^T 1 | b)` over `P >= 0`, `low` the cheapest real pair.

    Costs count above the cheapest pair, so that an offset does not decide how much mass is moved; value and
    bound are in that unit.  `KL(p|q) = sum p log(p/q) - p + q`.  With `f_i + g_j <= C_ij - low` the dual is
    `r a.(1 - exp(-f/r)) + s b.(1 - exp(-g/s))`, and moving a constant from f to g has a best amount in
    closed form.

    Sources: Liero, Mielke, Savare 2018; Chizat et al. 2018; the shift: Sejourne, Vialard, Peyre 2022.

    Parameters
    ----------
    source, target
        `r` and `s`, `[B]` in units of the cost; infinite for a marginal that is met exactly.  At least one is
        finite.
    """

    source: Tensor
    target: Tensor

    def certify(self, problem: TransportProblem, plan: Tensor, *, g: Tensor | None) -> Certificate:
        low, cost, a, b = above_cheapest(problem)
        plan = plan.double()
        sides = (plan.sum(2), a, self.source), (plan.sum(1), b, self.target)
        errors = [torch.where(r == math.inf, (p - q).abs().sum(1), 0.0) for p, q, r in sides]
        value = self.value(plan, cost, a=a, b=b)
        g = torch.zeros_like(b) if g is None else g.double()
        broken = ~(g < math.inf).all(1)
        start = g.masked_fill(broken[:, None], 0).masked_fill(b == 0, -math.inf)
        f = c_transform(cost, start, real=None, rows=True)
        g = c_transform(cost, f.masked_fill(a == 0, -math.inf), real=None, rows=False)
        rise, first = _soft_sum(f, a, reach=self.source)
        fall, second = _soft_sum(g, b, reach=self.target)
        shift = (rise - fall) / (1 / self.source + 1 / self.target)
        bound = _dual(rise, first, reach=self.source, shift=shift)
        bound = bound + _dual(fall, second, reach=self.target, shift=-shift)
        bound = bound.clamp_min(0).masked_fill(broken, -math.inf)
        return Certificate(
            value, bound, value - bound, errors[0], errors[1], PROVED * value.detach(),
            f + (shift + low)[:, None], g - shift[:, None],
        )  # fmt: skip

    def value(self, plan: Tensor, cost: Tensor, *, a: Tensor, b: Tensor) -> Tensor:
        """`[B]` objective of a plan whose hard side is met first by scaling, what has no mass by `a b^T`."""
        for reach, mass, axis in ((self.source, a, 2), (self.target, b, 1)):
            hard = (reach == math.inf)[:, None]
            plan = torch.where(
                (hard & (plan.sum(axis) == 0)).unsqueeze(axis), a[:, :, None] * b[:, None], plan
            )
            sent = plan.sum(axis)
            scale = torch.where(hard & (sent > 0), mass / sent.clamp_min(1e-300), torch.ones_like(sent))
            plan = plan * scale.unsqueeze(axis)
        paid = (plan * cost).sum((1, 2))
        for reach, mass, axis in ((self.source, a, 2), (self.target, b, 1)):
            missed = _divergence(plan.sum(axis), mass)
            paid = paid + torch.where(reach == math.inf, 0.0, reach * missed)
        return paid


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """`[B]` KL(p|q) of unequal masses; infinite where `p` has mass and `q` has none."""
    log = torch.where(p > 0, (p / q).log(), torch.zeros_like(p))
    return (p * log - p + q).sum(1)


def _soft_sum(potential: Tensor, mass: Tensor, *, reach: Tensor) -> tuple[Tensor, Tensor]:
    """`log mass.exp(-potential / reach)`, 0 for an exact side, and `mass.potential`, `[B]` each."""
    hard = reach == math.inf
    log = (mass.log() - potential / reach[:, None]).logsumexp(1)
    return torch.where(hard, 0.0, log), (mass * potential).sum(1)


def _dual(log: Tensor, mean: Tensor, *, reach: Tensor, shift: Tensor) -> Tensor:
    """One side's part of the dual value after `shift` was added to its potential."""
    soft = -reach * torch.expm1(log - shift / reach)
    return torch.where(reach == math.inf, mean + shift, soft)
