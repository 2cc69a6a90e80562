"""Max-min dispersion: the largest smallest distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing
from pruneopt.problems.kinds._terms import anchor_min, distances

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class MaxMin(Kind):
    """Smallest `pairwise` distance within the choice and to the anchors.

    A single token without anchors has no pair and is worth 0 by convention.
    """

    name: ClassVar[str] = "max_min"
    pairs: ClassVar[str] = "costs"
    symmetric: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    greedy = {"kind": "farthest_point"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        apart = keep[:, :, None] & keep[:, None, :]
        distance = distances(problem, math.inf).masked_fill(~apart, math.inf)
        outside = anchor_min(problem).masked_fill(~keep, math.inf)
        value = torch.minimum(distance.amin((1, 2)), outside.amin(1))
        return torch.where(value == math.inf, 0.0, value)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """Largest distance that could still be the optimum, by covering with close groups.

        If the tokens fall into fewer than k groups whose members are all closer than t to each other, any k
        tokens have two in one group, so the optimum is below t.  Greedy groups, bisection over the occurring
        distances, and the star bound (k tokens must each have k-1 others that far away).  No triangle
        inequality is needed.  Two protected tokens are no farther apart in any choice than they are.
        """
        distance, outside = distances(problem, 0.0).cpu().numpy(), anchor_min(problem).cpu().numpy()
        out = []
        for b, k in enumerate(problem.k.tolist()):
            inside = np.flatnonzero(problem.real[b].cpu().numpy())
            out.append(_bound_one(distance[b][np.ix_(inside, inside)], outside[b][inside], int(k)))
        bound = torch.tensor(out, dtype=torch.float64, device=problem.k.device)
        if problem.protected is None:
            return bound
        forced = problem.protected & problem.real
        fixed = distances(problem, math.inf).masked_fill(~(forced[:, :, None] & forced[:, None, :]), math.inf)
        return torch.minimum(bound, fixed.amin((1, 2)))

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        distance = distances(problem, math.inf)
        outside = anchor_min(problem)
        tokens = distance.shape[1]
        two = distance.masked_fill(~keep[:, None, :], math.inf).topk(min(2, tokens), dim=2, largest=False)
        first, second = two.values[:, :, 0], two.values[:, :, -1]
        nearest = two.indices[:, :, 0]
        place = torch.arange(tokens, device=keep.device)
        # without[b, i, n]: distance of token n to the choice once i has left it
        left = nearest[:, None, :] == place[None, :, None]
        without = torch.where(left, second[:, None, :], first[:, None, :])
        without = torch.minimum(without, outside[:, None, :])
        others = keep[:, None, :] & ~torch.eye(tokens, dtype=torch.bool, device=keep.device)
        rest = without.masked_fill(~others, math.inf).amin(2)
        after = torch.minimum(rest[:, :, None], without)
        return torch.where(after == math.inf, 0.0, after) - self.value(problem, keep)[:, None, None]

    def levels(self, problem: SubsetProblem) -> np.ndarray:
        outside = anchor_min(problem)[0].cpu().numpy()
        if int(problem.k[0]) == 1 and not np.isfinite(outside).any():
            return np.empty(0)
        inside = np.flatnonzero(problem.real[0].cpu().numpy())
        distance = distances(problem, 0.0)[0].cpu().numpy()[np.ix_(inside, inside)]
        return np.unique(
            np.concatenate([distance[np.triu_indices(len(inside), 1)], outside[np.isfinite(outside)]])
        )

    def close(self, problem: SubsetProblem, level: float) -> tuple[np.ndarray, np.ndarray]:
        close = (distances(problem, math.inf)[0] < level).cpu().numpy()
        return close, (problem.real[0] & (anchor_min(problem)[0] >= level)).cpu().numpy()

    def reaching(self, problem: SubsetProblem, level: float) -> Program | None:
        close, usable = self.close(problem, level)
        forced = np.zeros_like(usable) if problem.protected is None else problem.protected[0].cpu().numpy()
        if (forced & ~usable).any() or usable.sum() < int(problem.k[0]):
            return None
        program = choosing(problem, usable)
        program.add_conflicts(close[np.ix_(program.place, program.place)])
        return program


def metric_bound(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """Twice the value of a farthest-point choice `keep`: valid only when distances are a metric."""
    return 2 * problem.value(keep)


def _bound_one(distance: np.ndarray, outside: np.ndarray, k: int) -> float:
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
