"""How far a transport plan is from the optimum, from plan and potentials alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.brief import Brief
from pruneopt.problems.transport import TransportProblem

PROVED = 1e-9  # gap over what the plan pays above the cheapest pair, and L1 marginal error, of an optimum
NOISE = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Brief):
    """Bounds that need no reference solver, per problem `[B]`, in units of the cost.

    Source: Altschuler, Weed, Rigollet 2017, Algorithm 2; Villani 2009, Theorem 5.10.

    Parameters
    ----------
    value
        Cost of the plan rounded onto the polytope, hence an upper bound of the optimum.
    lower_bound
        From a c-transform of the potentials, which is dual feasible.
    gap
        Their difference, never negative beyond rounding, and computed above the cheapest pair, so that an
        offset of the cost does not blur it.
    row_error, col_error
        L1 violation of the marginals before rounding.  A plan that misses them by more than 1e-9 is no
        optimum whatever it pays.
    tolerance
        Gap up to which the plan counts as optimal: 1e-9 of what it pays above the cheapest real pair.  Pairs
        that the plan avoids have no part in it, so a huge cost cannot inflate it.
    f, g
        The potentials behind the bound, `f_i + g_j <= cost_ij`.
    """

    value: Float[Tensor, " B"]
    lower_bound: Float[Tensor, " B"]
    gap: Float[Tensor, " B"]
    row_error: Float[Tensor, " B"]
    col_error: Float[Tensor, " B"]
    tolerance: Float[Tensor, " B"]
    f: Float[Tensor, "B N"]
    g: Float[Tensor, "B M"]

    @property
    def proved(self) -> Tensor:
        """`[B]` bool: whether the plan may be called optimal, by `settled` and by the envelope theorem."""
        met = (self.row_error <= PROVED) & (self.col_error <= PROVED)
        return met & (self.gap <= self.tolerance)


def round_to_polytope(plan: Tensor, a: Tensor, *, b: Tensor) -> Tensor:
    """Nearest-by-scaling feasible plan `[B,N,M]`: rows sum to `a`, columns to `b`, to float64 rounding.

    Mass at the level of rounding is dropped and not put elsewhere: next to a cost of 1e15 it would decide.
    Source: Altschuler, Weed, Rigollet 2017, Algorithm 2.
    """
    plan = plan.masked_fill(plan < NOISE * a[:, :, None], 0)
    rows = plan.sum(2)
    plan = plan * torch.where(rows > a, a / rows.clamp_min(1e-300), torch.ones_like(rows))[:, :, None]
    cols = plan.sum(1)
    plan = plan * torch.where(cols > b, b / cols.clamp_min(1e-300), torch.ones_like(cols))[:, None, :]
    row_left, col_left = _left(a, plan.sum(2)), _left(b, plan.sum(1))
    total = row_left.sum(1)
    scale = torch.where(total > 0, 1 / total.clamp_min(1e-300), torch.zeros_like(total))
    return plan + row_left[:, :, None] * (col_left * scale[:, None])[:, None, :]


def _left(mass: Tensor, sent: Tensor) -> Tensor:
    left = mass - sent
    return left.masked_fill(left <= 64 * NOISE * mass, 0)


def c_transform(cost: Tensor, g: Tensor, *, real: Tensor | None, rows: bool) -> Tensor:
    """`f_i = min_j cost_ij - g_j` over real pairs (`rows=True`), or its mirror image for columns.

    Minus infinity in `g` is an atom that is not there; 0 where no atom is.  NaN stays NaN.
    """
    reduced = cost - (g[:, None, :] if rows else g[:, :, None])
    if real is not None:
        reduced = reduced.masked_fill(~real, math.inf)
    out = reduced.amin(2 if rows else 1)
    return out.masked_fill(out == math.inf, 0)


def above_cheapest(problem: TransportProblem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lowest cost `[B]`, cost above it (0 where masked), and masses that sum to one, all in float64."""
    a, b = problem.a.double(), problem.b.double()
    low = problem.span()[0].double()
    cost = problem.cost.double() - low[:, None, None]
    real = problem.pair_mask
    cost = cost if real is None else cost.masked_fill(~real, 0)
    return low, cost, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def certify(problem: TransportProblem, plan: Tensor, *, g: Tensor | None) -> Certificate:
    """Certificate of any plan `[B,N,M]` and any target potential `[B,M]` (zeros when None).

    Computed in float64 on the problem's device.  A non-finite plan or potential gives a NaN value or an
    infinite gap, never a small one; minus infinity is the potential of an atom without mass.
    """
    low, cost, a, b = above_cheapest(problem)
    real = problem.pair_mask
    plan = plan.double()
    row_error, col_error = (plan.sum(2) - a).abs().sum(1), (plan.sum(1) - b).abs().sum(1)
    paid = (round_to_polytope(plan, a, b=b) * cost).sum((1, 2))
    paid = torch.where(plan.isfinite().flatten(1).all(1), paid, torch.full_like(paid, math.nan))
    start = torch.zeros_like(b) if g is None else g.double()
    broken = ~(start < math.inf).all(1)
    start = start.masked_fill(broken[:, None], 0)
    f = c_transform(cost, start, real=real, rows=True)
    f = f - (a * f).sum(1, keepdim=True)  # potentials far from zero would cancel below
    tight = c_transform(cost, f, real=real, rows=False)
    bound = ((a * f).sum(1) + (b * tight).sum(1)).clamp_min(0)  # nothing is below the cheapest pair
    bound = bound.masked_fill(broken, -math.inf)
    return Certificate(
        low + paid, low + bound, paid - bound, row_error, col_error, PROVED * paid.detach(),
        f + low[:, None], tight,
    )  # fmt: skip
