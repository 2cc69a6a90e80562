"""What every swap of one chosen token against one that is not would gain, for each kind of problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pruneopt.problems.kinds._objectives import (
    anchor_min,
    anchor_sum,
    conflicts,
    magnitude,
    subset_value,
    symmetric_pairwise,
    unary_or,
)
from pruneopt.problems.subset import SubsetProblem


def swap_gains(problem: SubsetProblem, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Gain `[B,N,N]` float64 of exchanging token i (out) for token j (in), and `magnitude` `[B]`.

    Entries for i not chosen or j chosen are meaningless; swaps that break a quota or a conflict are -inf.
    """
    return _GAINS[problem.kind](problem, keep), magnitude(problem, keep)


def _unary(problem: SubsetProblem, keep: Tensor) -> Tensor:
    score = unary_or(problem, 0.0)
    return score[:, None, :] - score[:, :, None]


def _quota(problem: SubsetProblem, keep: Tensor) -> Tensor:
    assert problem.group is not None
    same = problem.group[:, :, None] == problem.group[:, None, :]
    return _unary(problem, keep).masked_fill(~same, -math.inf)


def _independent_set(problem: SubsetProblem, keep: Tensor) -> Tensor:
    pairs = conflicts(problem)
    against = (pairs & keep[:, None, :]).sum(2)
    legal = (against[:, None, :] - pairs.to(against.dtype)) == 0
    return _unary(problem, keep).masked_fill(~legal, -math.inf)


def _max_sum(problem: SubsetProblem, keep: Tensor) -> Tensor:
    distance = symmetric_pairwise(problem)
    distance.diagonal(dim1=1, dim2=2).zero_()
    own = unary_or(problem, 0.0) + anchor_sum(problem)
    total = (distance @ keep.double()[:, :, None]).squeeze(2) + own
    return total[:, None, :] - distance - total[:, :, None]


def _max_min(problem: SubsetProblem, keep: Tensor) -> Tensor:
    distance = symmetric_pairwise(problem)
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    outside = anchor_min(problem)
    to_chosen = distance.masked_fill(~keep[:, None, :], math.inf)
    tokens = distance.shape[1]
    two = to_chosen.topk(min(2, tokens), dim=2, largest=False)
    first, second = two.values[:, :, 0], two.values[:, :, -1]
    nearest = two.indices[:, :, 0]
    place = torch.arange(tokens, device=keep.device)
    # without[b, i, n]: distance of token n to the choice once i has left it
    without = torch.where(nearest[:, None, :] == place[None, :, None], second[:, None, :], first[:, None, :])
    without = torch.minimum(without, outside[:, None, :])
    others = keep[:, None, :] & ~torch.eye(tokens, dtype=torch.bool, device=keep.device)
    rest = without.masked_fill(~others, math.inf).amin(2)
    after = torch.minimum(rest[:, :, None], without)
    now = subset_value(problem, keep)[:, None, None]
    return torch.where(after == math.inf, 0.0, after) - now


def _facility_location(problem: SubsetProblem, keep: Tensor) -> Tensor:
    assert problem.pairwise is not None
    real = problem.real
    similar = problem.pairwise.double().masked_fill(~(real[:, :, None] & real[:, None, :]), 0)
    weight = unary_or(problem, 1.0)
    chosen = similar.masked_fill(~keep[:, None, :], -math.inf)
    two = chosen.topk(min(2, chosen.shape[2]), dim=2)
    first, second = two.values[:, :, :1], two.values[:, :, -1:]
    base = (torch.maximum(similar, first) - first) * weight[:, :, None]
    lost = torch.maximum(similar, second) - torch.maximum(similar, first)
    lost = lost * weight[:, :, None]
    served = two.indices[:, :, :1].expand(-1, -1, lost.shape[2])
    by_server = torch.zeros_like(lost).scatter_add_(1, served, lost)
    return base.sum(1)[:, None, :] + by_server


def _log_det(problem: SubsetProblem, keep: Tensor) -> Tensor:
    quality = unary_or(problem, 1.0)
    kernel = quality[:, :, None] * symmetric_pairwise(problem) * quality[:, None, :]
    width = max(1, int(keep.sum(1).max()))
    inside = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    exists = keep.gather(1, inside)
    rows = kernel.gather(1, inside[:, :, None].expand(-1, -1, kernel.shape[2]))
    rows = rows.masked_fill(~exists[:, :, None], 0)
    block = rows.gather(2, inside[:, None, :].expand(-1, width, -1)).masked_fill(~exists[:, None, :], 0)
    block = block + torch.diag_embed((~exists).to(block.dtype))
    inverse = torch.linalg.pinv(block, hermitian=True)
    mixed = inverse @ rows
    residual = kernel.diagonal(dim1=1, dim2=2) - (rows * mixed).sum(1)
    # det(S - i + j) / det(S) = A_ii (L_jj - c^T A c) + (A c)_i^2 with A = L_S^-1, c = L_Sj
    ratio = inverse.diagonal(dim1=1, dim2=2)[:, :, None] * residual[:, None, :] + mixed.square()
    gain = ratio.clamp_min(0).log()
    full = torch.full_like(kernel, -math.inf)
    return full.scatter_(1, inside[:, :, None].expand(-1, -1, kernel.shape[2]), gain)


_GAINS = {
    "top_k": _unary,
    "quota": _quota,
    "independent_set": _independent_set,
    "max_sum": _max_sum,
    "max_min": _max_min,
    "facility_location": _facility_location,
    "log_det": _log_det,
}
