"""Groups of targets that cost about the same from everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import rows_of
from pruneopt.tensors import take_rows

LANDMARKS = 32  # sources that targets are compared by
ROUNDS = 3  # of k-means after the first centres


def target_groups(problem: TransportProblem, count: int) -> Tensor:
    """`[B,M]` int64 group below `count` of each target; each its own where `count` reaches M.

    Two targets are alike if they cost alike from some sources spread evenly over the real ones.  The first
    centres are each farthest from those before it (Gonzalez 1985), then a few rounds of k-means follow;
    targets without mass are placed but do not move a centre.  O((N + MK) 32).
    """
    b = problem.b
    batch, targets = b.shape
    every = torch.arange(targets, device=b.device).expand(batch, -1)
    if count >= targets:
        return every
    points = _seen_from(problem).masked_fill((b == 0)[:, :, None], 0)
    width = (points.amax((1, 2)) - points.amin((1, 2)))[:, None, None]
    points = points / torch.where(width > 0, width, 1)
    centres = take_rows(points, _spread(points, b, count=count))
    label = _nearest(points, centres)
    for _ in range(ROUNDS):
        place = label[:, :, None].expand_as(points)
        mass = b.new_zeros(batch, count).scatter_add_(1, label, b)
        total = torch.zeros_like(centres).scatter_add_(1, place, points * b[:, :, None].to(points.dtype))
        moved = total / mass[:, :, None].clamp_min(torch.finfo(b.dtype).tiny).to(points.dtype)
        centres = torch.where((mass > 0)[:, :, None], moved, centres)
        label = _nearest(points, centres)
    return label


def _seen_from(problem: TransportProblem) -> Tensor:
    """`[B,M,L]` cost of every target from L sources with mass."""
    real = problem.a > 0
    count = min(LANDMARKS, real.shape[1])
    order = (~real).to(torch.int8).argsort(dim=1, stable=True)
    steps = torch.arange(count, device=real.device) * real.sum(1, keepdim=True) // count
    return rows_of(problem.cost).block(order.gather(1, steps)).transpose(1, 2)


def _spread(points: Tensor, b: Tensor, *, count: int) -> Tensor:
    """`[B,K]` the heaviest target, and then each time the one farthest from all before it."""
    picks = [b.argmax(1)]
    far = torch.full(b.shape, torch.inf, dtype=points.dtype, device=b.device)
    squares = points.square().sum(2)
    for _ in range(count - 1):
        last = points.gather(1, picks[-1][:, None, None].expand(-1, 1, points.shape[2]))
        inner = torch.bmm(points, last.transpose(1, 2)).squeeze(2)
        away = squares - 2 * inner + last.square().sum(2)
        far = torch.minimum(far, away).masked_fill(b == 0, -1)
        picks.append(far.argmax(1))
    return torch.stack(picks, 1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """`[B,M]` the nearest centre of each point, ties to the lower index."""
    inner = torch.bmm(points, centres.transpose(1, 2))
    return (centres.square().sum(2)[:, None, :] - 2 * inner).argmin(2)
