"""What a chosen subset is worth: the single source of `SubsetSolution.value`.

Problems over unordered pairs are built on a symmetric `P`; they use `(P + P^T) / 2` here, which takes away
what rounding left.  The diagonal never counts, except in `log_det` and `facility_location`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.subset import SubsetProblem


def symmetric_pairwise(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` float64 `(P + P^T) / 2`, zero at padding."""
    assert problem.pairwise is not None
    pairwise = problem.pairwise.double()
    pairwise = (pairwise + pairwise.transpose(1, 2)) / 2
    if problem.mask is not None:
        pairwise = pairwise.masked_fill(~(problem.mask[:, :, None] & problem.mask[:, None, :]), 0)
    return pairwise


def unary_or(problem: SubsetProblem, default: float) -> Tensor:
    """`[B,N]` float64 `unary`, or a constant where there is none; zero at padding."""
    if problem.unary is None:
        values = torch.full(problem.shape, default, dtype=torch.float64, device=problem.k.device)
    else:
        values = problem.unary.double()
    return values.masked_fill(~problem.real, 0)


def anchor_min(problem: SubsetProblem) -> Tensor:
    """`[B,N]` float64 distance of every token to the nearest anchor; +inf where there is none."""
    if problem.anchors is None or problem.anchors.shape[1] == 0:
        return torch.full(problem.shape, math.inf, dtype=torch.float64, device=problem.k.device)
    return problem.anchors.double().amin(1).masked_fill(~problem.real, math.inf)


def anchor_sum(problem: SubsetProblem) -> Tensor:
    """`[B,N]` float64 sum of the distances to all present anchors; zero where there is none."""
    if problem.anchors is None:
        return torch.zeros(problem.shape, dtype=torch.float64, device=problem.k.device)
    rows = problem.anchors.double()
    return rows.masked_fill(rows == math.inf, 0).sum(1).masked_fill(~problem.real, 0)


def broken(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """`[B]` bool: the choice breaks the budget, a protected token, a quota, a conflict, or padding."""
    size = keep.sum(1)
    wrong = (keep & ~problem.real).any(1)
    wrong |= (size > problem.k) if problem.kind == "independent_set" else (size != problem.k)
    if problem.protected is not None:
        wrong |= (problem.protected & ~keep).any(1)
    if problem.kind == "independent_set":
        pairs = conflicts(problem) & keep[:, :, None] & keep[:, None, :]
        wrong |= pairs.flatten(1).any(1)
    if problem.kind == "quota":
        assert problem.group is not None and problem.quota is not None
        got = torch.zeros_like(problem.quota)
        got.scatter_add_(1, problem.group.masked_fill(~problem.real, 0), keep.to(got.dtype))
        wrong |= (got != problem.quota).any(1)
    return wrong


def conflicts(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` bool: pairs of different real tokens more alike than `threshold`; as alike is no conflict.

    Compared in the dtype of `pairwise`, into which the threshold is rounded: a float32 entry that was
    written as 0.3 equals a threshold of 0.3.
    """
    assert problem.threshold is not None and problem.pairwise is not None
    pairs = problem.pairwise > problem.threshold
    pairs = pairs | pairs.transpose(1, 2)
    pairs.diagonal(dim1=1, dim2=2).fill_(False)
    return pairs & problem.real[:, :, None] & problem.real[:, None, :]


def subset_value(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """Objective `[B]` float64 of the choice `keep` `[B,N]` bool; larger is better.

    -inf where the choice breaks a constraint.  `max_min` of a single token without anchors has no pair and
    is 0 by convention.  `log_det` of a numerically singular choice is -inf (see `block_log_det`).
    """
    if keep.shape != problem.shape or keep.dtype != torch.bool:
        raise ProblemError(f"keep must be bool {list(problem.shape)}, got {keep.dtype} {list(keep.shape)}")
    chosen = keep & problem.real
    value = _VALUES[problem.kind](problem, chosen)
    return value.masked_fill(broken(problem, keep), -math.inf)


def magnitude(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """`[B]` float64 size of the terms that make up the value of `keep`: the unit of relative tolerances.

    The same objective over absolute numbers, so that a sum that cancels is not asked for more digits than
    its terms have; a nat per token for `log_det`, which changes by a constant when its kernel is scaled.
    """
    chosen = keep & problem.real
    if problem.kind == "log_det":
        return chosen.sum(1).double()
    terms = {name: getattr(problem, name) for name in ("unary", "pairwise", "anchors")}
    sizes = {name: tensor.abs() for name, tensor in terms.items() if tensor is not None}
    return _VALUES[problem.kind](replace(problem, **sizes), chosen)


def _modular(problem: SubsetProblem, keep: Tensor) -> Tensor:
    return (unary_or(problem, 0.0) * keep).sum(1)


def _max_min(problem: SubsetProblem, keep: Tensor) -> Tensor:
    distance = symmetric_pairwise(problem)
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    distance = distance.masked_fill(~(keep[:, :, None] & keep[:, None, :]), math.inf)
    outside = anchor_min(problem).masked_fill(~keep, math.inf)
    value = torch.minimum(distance.amin((1, 2)), outside.amin(1))
    return torch.where(value == math.inf, 0.0, value)


def _max_sum(problem: SubsetProblem, keep: Tensor) -> Tensor:
    distance = symmetric_pairwise(problem)
    distance.diagonal(dim1=1, dim2=2).zero_()
    hot = keep.double()
    pairs = (hot * (distance @ hot[:, :, None]).squeeze(2)).sum(1) / 2
    return pairs + ((unary_or(problem, 0.0) + anchor_sum(problem)) * keep).sum(1)


def _facility_location(problem: SubsetProblem, keep: Tensor) -> Tensor:
    assert problem.pairwise is not None
    best = problem.pairwise.double().masked_fill(~keep[:, None, :], -math.inf).amax(2)
    return (best.masked_fill(~problem.real, 0) * unary_or(problem, 1.0)).sum(1)


def _log_det(problem: SubsetProblem, keep: Tensor) -> Tensor:
    quality = unary_or(problem, 1.0)
    kernel = quality[:, :, None] * symmetric_pairwise(problem) * quality[:, None, :]
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, : max(1, int(keep.sum(1).max()))]
    inside = keep.gather(1, order)
    rows = order[:, :, None].expand(-1, -1, kernel.shape[2])
    block = kernel.gather(1, rows).gather(2, order[:, None, :].expand(-1, order.shape[1], -1))
    eye = torch.eye(order.shape[1], dtype=block.dtype, device=block.device)
    block = torch.where(inside[:, :, None] & inside[:, None, :], block, eye)
    return block_log_det(block, singular_below(problem, keep.sum(1)))


def singular_below(problem: SubsetProblem, size: Tensor) -> Tensor:
    """`[B]` float64: a choice of `size` `[B]` tokens is singular when an eigenvalue is no larger than this.

    Size times the rounding of the kernel's dtype, of the block scaled to a unit diagonal: what the entries
    themselves do not resolve.  A float32 Gram matrix of low rank has such eigenvalues on both sides of zero.
    """
    assert problem.pairwise is not None
    return size.double() * torch.finfo(problem.pairwise.dtype).eps


def block_log_det(block: Tensor, singular: Tensor) -> Tensor:
    """`[B]` log-determinants of symmetric blocks `[B,K,K]` float64.

    -inf unless every eigenvalue of the block, scaled to a unit diagonal, is above `singular` `[B]`.  So a
    finite value belongs to a positive definite block, and interlacing and Hadamard bound it whatever the
    rest of the kernel is.
    """
    scale = block.diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()
    unit = block / (scale[:, :, None] * scale[:, None, :])
    least = torch.diag_embed(singular[:, None].expand(-1, block.shape[1]))
    definite = torch.linalg.cholesky_ex(unit - least).info == 0
    log = torch.linalg.slogdet(unit).logabsdet
    return torch.where(definite | log.isnan(), log + 2 * scale.log().sum(1), -math.inf)


_VALUES = {
    "top_k": _modular,
    "quota": _modular,
    "independent_set": _modular,
    "max_min": _max_min,
    "max_sum": _max_sum,
    "facility_location": _facility_location,
    "log_det": _log_det,
}
