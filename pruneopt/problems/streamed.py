"""Certificates of transport whose cost, or whose plan, is read a few rows at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pruneopt.problems.certificate import PROVED, Certificate
from pruneopt.problems.pooled import small_blocks
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import rows_of


def certify_by_rows(
    problem: TransportProblem, plan: Tensor, *, f: Tensor | None, g: Tensor | None
) -> Certificate:
    """The certificate of `certify`, without a matrix: O(N + M) memory beside a block of rows.

    Two passes over the cost: the bound starts from `g` as there, or where that is None from `f`, and a second
    c-transform raises it.  The plan is rounded as there, by a factor for each row and column and what is
    left, but keeps mass at the level of rounding.
    """
    a, b = problem.a.double(), problem.b.double()
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    cost, moves = rows_of(problem.cost), rows_of(plan)
    here, there = a > 0, b > 0
    real_row = torch.ones_like(here) if problem.row_mask is None else problem.row_mask
    real_col = torch.ones_like(there) if problem.col_mask is None else problem.col_mask
    sent = moves.sums()
    row_error = (sent - a).abs().sum(1)
    up = torch.where(sent > a, a / sent.clamp_min(1e-300), torch.ones_like(a))
    turned = moves.turned()
    got = turned.product(torch.ones_like(a))
    col_error = (got - b).abs().sum(1)
    got = turned.product(up)
    over = torch.where(got > b, b / got.clamp_min(1e-300), torch.ones_like(b))
    row_left = (a - up * moves.product(over)).clamp_min(0)
    col_left = (b - got * over).clamp_min(0)
    row_left = row_left / row_left.sum(1, keepdim=True).clamp_min(1e-300)
    if g is not None:
        f = _least(problem, g.double().masked_fill(~real_col, -math.inf))
    binds = real_row if g is not None else here  # a potential given for an atom without mass says nothing
    start = torch.zeros_like(a) if f is None else f.double()
    broken = ~((start < math.inf) & (start.isfinite() | ~here)).all(1)
    f = start.masked_fill(broken[:, None] | ~binds, 0)
    f = f - (a * f).sum(1, keepdim=True)
    tight = torch.full_like(b, math.inf)
    low = torch.full_like(a[:, 0], math.inf)
    base, paid = None, torch.zeros_like(low)
    scaled, short = bool(((up < 1) | ~here).any() or (over < 1).any()), bool((col_left > 0).any())
    for part, entries in small_blocks(cost):
        lowest = _real_least(entries, real_row[:, part], cols=real_col)
        low = torch.minimum(low, lowest)
        if base is None:  # costs are summed above one of them, so that an offset does not blur the gap
            base = torch.where(lowest.isfinite(), lowest, 0.0)
        above = entries.double().sub_(base[:, None, None])
        moved = moves.block(part).double()
        if scaled:
            moved = moved.mul_(up[:, part, None]).mul_(over[:, None, :])
        if short:
            moved = moved.add_(row_left[:, part, None] * col_left[:, None, :])
        paid = paid + torch.bmm(moved.flatten(1)[:, None, :], above.flatten(1)[:, :, None]).flatten()
        offset = (base[:, None] - f[:, part]).masked_fill(~binds[:, part], math.inf)
        tight = torch.minimum(tight, above.add_(offset[:, :, None]).amin(1))
    assert base is not None
    tight = tight.masked_fill(~tight.isfinite() | ~real_col, 0)
    if g is None:
        raised = _least(problem, tight.masked_fill(~there, -math.inf))
        f = torch.maximum(f, raised).masked_fill(~here, 0)  # by rounding only is it not higher
    paid = paid - (low - base)
    bound = ((a * f).sum(1) + (b * (tight - low[:, None])).sum(1)).clamp_min(0)
    bound = bound.masked_fill(broken, -math.inf)
    return Certificate(
        low + paid, low + bound, paid - bound, row_error, col_error, PROVED * paid,
        f.masked_fill(~binds, -math.inf), tight,
    )  # fmt: skip


def _least(problem: TransportProblem, g: Tensor) -> Tensor:
    """`[B,N]` float64 `min_j C_ij - g_j` over the targets with a potential."""
    found = [(entries - g[:, None, :]).amin(2) for _, entries in small_blocks(rows_of(problem.cost))]
    return torch.cat(found, 1)


def _real_least(entries: Tensor, rows: Tensor, *, cols: Tensor) -> Tensor:
    """`[B]` float64 least entry at real rows and columns of a block; infinite without any."""
    least = entries.amin(2) if bool(cols.all()) else entries.masked_fill(~cols[:, None, :], math.inf).amin(2)
    return least.double().masked_fill(~rows, math.inf).amin(1)
