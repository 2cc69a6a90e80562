"""What kinds share: the terms of a problem made clean in float64, and sums of the best.

Problems over unordered pairs are built on a symmetric `P`; they use `(P + P^T) / 2` here, which takes away
what rounding left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


def pair_mask(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` bool: pairs of real tokens."""
    return problem.real[:, :, None] & problem.real[:, None, :]


def symmetric_pairwise(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` float64 `(P + P^T) / 2`, zero at padding."""
    assert problem.pairwise is not None
    pairwise = problem.pairwise.double()
    pairwise = (pairwise + pairwise.transpose(1, 2)) / 2
    return pairwise if problem.mask is None else pairwise.masked_fill(~pair_mask(problem), 0)


def distances(problem: SubsetProblem, own: float) -> Tensor:
    """`symmetric_pairwise` with `own` on the diagonal."""
    pairwise = symmetric_pairwise(problem)
    pairwise.diagonal(dim1=1, dim2=2).fill_(own)
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


def best_k(values: Tensor, k: Tensor, *, forced: Tensor | None = None) -> Tensor:
    """`[B]` sum of the `k[b]` largest entries of `values` `[B,N]`, the forced ones first; -inf is absent."""
    rank = values if forced is None else values.masked_fill(forced, math.inf)
    top = values.gather(1, rank.argsort(dim=1, descending=True, stable=True))
    place = torch.arange(top.shape[1], device=top.device)
    return top.masked_fill((place >= k[:, None]) | (top == -math.inf), 0).sum(1)


def modular(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """`[B]` float64 sum of the scores of `keep`."""
    return (unary_or(problem, 0.0) * keep).sum(1)


def modular_gains(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` score of the token that comes minus that of the token that goes."""
    score = unary_or(problem, 0.0)
    return score[:, None, :] - score[:, :, None]
