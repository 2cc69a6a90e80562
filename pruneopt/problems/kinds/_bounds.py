"""Upper bounds of subset optima: no choice of `k` tokens is worth more.

All hold without assumptions about the data unless the docstring says otherwise.  Those of `top_k`,
`quota` and `max_min` use protected tokens; the others ignore them, which is allowed as they only lower the
optimum.  All
run in float64 and cost between O(N log N) and O(N^3) a sample.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._objectives import (
    anchor_min,
    anchor_sum,
    conflicts,
    subset_value,
    symmetric_pairwise,
    unary_or,
)
from pruneopt.problems.subset import SubsetProblem


def upper_bound(problem: SubsetProblem, keep: Tensor) -> tuple[Tensor | None, str]:
    """Bound `[B]` float64 of the optimum, and the reason where there is none.

    `keep` `[B,N]` is any choice; bounds of submodular kinds are taken around it.
    """
    if problem.kind == "facility_location":
        if problem.unary is not None and bool((problem.unary.masked_fill(~problem.real, 0) < 0).any()):
            return None, "negative weights: the value is not submodular, so gains bound nothing"
        return facility_bound(problem, keep), ""
    return _BOUNDS[problem.kind](problem), ""


def _best_k(values: Tensor, k: Tensor, forced: Tensor | None = None) -> Tensor:
    """`[B]` sum of the `k[b]` largest entries of `values` `[B,N]`, the forced ones first; -inf is absent."""
    rank = values if forced is None else values.masked_fill(forced, math.inf)
    top = values.gather(1, rank.argsort(dim=1, descending=True, stable=True))
    place = torch.arange(top.shape[1], device=top.device)
    return top.masked_fill((place >= k[:, None]) | (top == -math.inf), 0).sum(1)


def modular_bound(problem: SubsetProblem) -> Tensor:
    """The optimum itself: the k largest scores."""
    score = unary_or(problem, 0.0).masked_fill(~problem.real, -math.inf)
    return _best_k(score, problem.k, problem.protected)


def quota_bound(problem: SubsetProblem) -> Tensor:
    """The optimum itself: the largest scores of every group."""
    assert problem.group is not None and problem.quota is not None
    score = unary_or(problem, 0.0)
    total = torch.zeros_like(problem.k, dtype=torch.float64)
    for g in range(problem.quota.shape[1]):
        member = (problem.group == g) & problem.real
        forced = None if problem.protected is None else problem.protected & member
        total += _best_k(score.masked_fill(~member, -math.inf), problem.quota[:, g], forced)
    return total


def max_sum_bound(problem: SubsetProblem) -> Tensor:
    """The smaller of a star bound and a projected spectral bound.

    Star: a chosen token adds at most its own score plus half of its k-1 largest distances.  Spectral: write
    the indicator as `k/n 1 + y` with y orthogonal to 1 and `|y|^2 = k - k^2/n`, and bound the linear part by
    Cauchy-Schwarz and the quadratic part by the largest eigenvalue of the centred distance matrix, which is
    at most zero for distances of negative type such as 1 - cosine.
    """
    distance = symmetric_pairwise(problem)
    distance.diagonal(dim1=1, dim2=2).zero_()
    own = unary_or(problem, 0.0) + anchor_sum(problem)
    real, k = problem.real, problem.k
    pair = real[:, :, None] & real[:, None, :]
    other = distance.masked_fill(~pair, -math.inf)
    other.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    batch, tokens = problem.shape
    stars = _best_k(other.flatten(0, 1), (k - 1).repeat_interleave(tokens)).view(batch, tokens)
    star = _best_k((own + stars / 2).masked_fill(~real, -math.inf), k)
    n = real.sum(1).double()
    share = k.double() / n
    radius = (k.double() - k.double() ** 2 / n).clamp_min(0)
    hot = real.double()
    linear = (distance @ (hot * share[:, None])[:, :, None]).squeeze(2) + own
    centre = torch.diag_embed(hot) - hot[:, :, None] * hot[:, None, :] / n[:, None, None]
    linear_off = (centre @ linear[:, :, None]).squeeze(2)
    eigen = torch.linalg.eigvalsh(centre @ distance @ centre)
    # never below zero: the centred matrix has the eigenvector 1 with value 0 besides those on the space of y
    top = eigen[:, -1].clamp_min(0) + 1e-15 * tokens * eigen.abs().amax(1)
    middle = share**2 * (hot * (distance @ hot[:, :, None]).squeeze(2)).sum(1) / 2 + share * (own * hot).sum(
        1
    )
    spectral = middle + linear_off.norm(dim=1) * radius.sqrt() + top * radius / 2
    return torch.minimum(star, spectral)


def log_det_bound(problem: SubsetProblem) -> Tensor:
    """The smaller of the Hadamard bound (k largest diagonals) and the spectral one (k largest eigenvalues).

    The second follows from Cauchy interlacing: the j-th eigenvalue of any principal block is at most that of
    the whole matrix, which needs no assumption about the kernel, as only positive definite blocks have a
    value.  Eigenvalues are raised by what their computation may have lost.
    """
    quality = unary_or(problem, 1.0)
    kernel = quality[:, :, None] * symmetric_pairwise(problem) * quality[:, None, :]
    real = problem.real
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    logs = diagonal.clamp_min(0).log().masked_fill(~real, -math.inf)
    eigen = torch.linalg.eigvalsh(kernel)
    noise = eigen.abs().amax(1, keepdim=True) * 1e-15 * kernel.shape[1]
    spectral = (eigen.clamp_min(0) + noise).log()
    return torch.minimum(_log_best_k(logs, problem.k), _log_best_k(spectral, problem.k))


def _log_best_k(logs: Tensor, k: Tensor) -> Tensor:
    top = logs.sort(dim=1, descending=True).values
    place = torch.arange(top.shape[1], device=top.device)
    return top.masked_fill(place >= k[:, None], 0).sum(1)


def facility_bound(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """Best of the trivial bound and the data-dependent one around `keep`.

    For a submodular value F and any choice S, `OPT <= F(S) + sum of the k largest gains over S`
    (Leskovec et al. 2007); never worse than the 1 - 1/e of greedy.  Needs non-negative weights.
    """
    assert problem.pairwise is not None
    real = problem.real
    weight = unary_or(problem, 1.0)
    similar = problem.pairwise.double().masked_fill(~(real[:, :, None] & real[:, None, :]), -math.inf)
    best = similar.amax(2).masked_fill(~real, 0)
    trivial = (best * weight).sum(1)
    covered = similar.masked_fill(~keep[:, None, :], -math.inf).amax(2)
    around = torch.full_like(trivial, math.inf)
    some = (keep & real).any(1)
    base = (covered.masked_fill(~real, 0) * weight).sum(1)
    more = (
        torch.relu(similar - covered[:, :, None])
        .nan_to_num(0.0, posinf=0.0)
        .masked_fill(~real[:, :, None], 0)
    )
    gain = (more * weight[:, :, None]).sum(1).masked_fill(~real, -math.inf)
    around = torch.where(some, base + _best_k(gain, problem.k), around)
    return torch.minimum(trivial, around)


def max_min_bound(problem: SubsetProblem) -> Tensor:
    """Largest distance that could still be the optimum, by covering with close groups.

    If the tokens fall into fewer than k groups whose members are all closer than t to each other, any k
    tokens have two in one group, so the optimum is below t.  Greedy groups, bisection over the occurring
    distances, and the star bound (k tokens must each have k-1 others that far away).  No triangle inequality
    is needed.  Two protected tokens are no farther apart in any choice than they are.
    """
    distance = symmetric_pairwise(problem).cpu().numpy()
    outside, real, ks = anchor_min(problem).cpu().numpy(), problem.real.cpu().numpy(), problem.k.tolist()
    out = []
    for b, k in enumerate(ks):
        inside = np.flatnonzero(real[b])
        out.append(_max_min_one(distance[b][np.ix_(inside, inside)], outside[b][inside], int(k)))
    bound = torch.tensor(out, dtype=torch.float64, device=problem.k.device)
    if problem.protected is None:
        return bound
    forced = problem.protected & problem.real
    fixed = symmetric_pairwise(problem)
    fixed.diagonal(dim1=1, dim2=2).fill_(math.inf)
    fixed = fixed.masked_fill(~(forced[:, :, None] & forced[:, None, :]), math.inf)
    return torch.minimum(bound, fixed.amin((1, 2)))


def _max_min_one(distance: np.ndarray, outside: np.ndarray, k: int) -> float:
    reach = float(np.sort(outside)[::-1][k - 1])
    if k == 1:
        return 0.0 if math.isinf(reach) else reach
    np.fill_diagonal(distance, -math.inf)
    star = float(np.sort(np.sort(distance, axis=1)[:, ::-1][:, k - 2])[::-1][k - 1])
    np.fill_diagonal(distance, 0.0)
    high = min(star, reach)
    levels = np.unique(
        np.concatenate([distance[np.triu_indices(len(distance), 1)], outside[np.isfinite(outside)]])
    )
    levels = levels[levels <= high]
    low, top = 0, len(levels) - 1
    while low < top:  # the largest level that close groups do not refute
        middle = (low + top + 1) // 2
        if _groups(distance, levels[middle], outside >= levels[middle], k) < k:
            top = middle - 1
        else:
            low = middle
    return float(levels[low])


def _groups(distance: np.ndarray, level: float, usable: np.ndarray, stop: int) -> int:
    """Number of greedy groups with all distances below `level`; counting ends at `stop`."""
    close = distance < level
    left = usable.copy()
    count = 0
    while count < stop and left.any():
        degree = (close[:, left].sum(1)) * left
        candidates = left.copy()
        member = int(np.argmax(degree))
        while True:
            left[member] = False
            candidates &= close[member]
            candidates[member] = False
            if not candidates.any():
                break
            inner = np.flatnonzero(candidates)
            member = int(inner[np.argmax(close[np.ix_(inner, inner)].sum(1))])
        count += 1
    return count


def independent_set_bound(problem: SubsetProblem) -> Tensor:
    """k largest group maxima over greedy groups of tokens that all conflict with each other.

    A feasible choice holds at most one token of such a group.  At least one token is always chosen.
    """
    pairs = conflicts(problem).cpu().numpy()
    score, real, ks = unary_or(problem, 0.0).cpu().numpy(), problem.real.cpu().numpy(), problem.k.tolist()
    out = []
    for b, k in enumerate(ks):
        tops = []
        left = real[b].copy()
        for i in np.argsort(-score[b], kind="stable"):
            if not left[i]:
                continue
            tops.append(score[b, i])
            candidates = left & pairs[b, i]
            left[i] = False
            while candidates.any():
                inner = np.flatnonzero(candidates)
                member = int(inner[np.argmax(pairs[b][np.ix_(inner, inner)].sum(1))])
                left[member] = False
                candidates &= pairs[b, member]
        positive = [t for t in tops[:k] if t > 0]
        out.append(sum(positive) if positive else max(tops))
    return torch.tensor(out, dtype=torch.float64, device=problem.k.device)


def metric_max_min_bound(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """Twice the value of a farthest-point choice `keep`: valid only when distances are a metric."""
    return 2 * subset_value(problem, keep)


_BOUNDS = {
    "top_k": modular_bound,
    "quota": quota_bound,
    "max_min": max_min_bound,
    "max_sum": max_sum_bound,
    "log_det": log_det_bound,
    "independent_set": independent_set_bound,
}
