"""Max-min dispersion: the largest smallest distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._packing import packing_bound
from pruneopt.problems.kinds._program import Program, choosing
from pruneopt.problems.kinds._streamed import chosen_part, same_group_bound
from pruneopt.problems.kinds._swaps import Swaps, symmetric_rows, two_best
from pruneopt.problems.kinds._terms import anchor_min, distances
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem

CLOSE = 1e-3  # distances that differ by less are not told apart by linear programs


class MaxMin(Kind):
    """Smallest `pairwise` distance within the choice and to the anchors.

    A single token without anchors has no pair and is worth 0 by convention.
    """

    name: ClassVar[str] = "max_min"
    pairs: ClassVar[str] = "costs"
    symmetric: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    greedy = {"kind": "farthest_point"}
    search = {"kind": "threshold_search"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        apart = keep[:, :, None] & keep[:, None, :]
        distance = distances(problem, math.inf).masked_fill(~apart, math.inf)
        outside = anchor_min(problem).masked_fill(~keep, math.inf)
        value = torch.minimum(distance.amin((1, 2)), outside.amin(1))
        return _worth(value)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """Largest distance above the value of `keep` that is not refuted.

        One is refuted where fewer than k tokens fit that are pairwise at least that far apart: by counting,
        or, to 0.1 percent, by a linear program with clique inequalities (see `_packing`).  No triangle
        inequality is needed.  On the host.
        """
        known = problem.value(keep).tolist()
        every = [self._bound_one(problem.sample(b), value) for b, value in enumerate(known)]
        return torch.tensor(every, dtype=torch.float64, device=problem.k.device)

    def _bound_one(self, problem: SubsetProblem, value: float) -> float:
        levels = self.levels(problem)
        if not len(levels):  # a single token without anchors
            return 0.0
        levels = levels[levels > value]
        k, forced = int(problem.k[0]), CappedSimplex.of(problem).forced[0].cpu().numpy()
        for fit, apart in ((_core_fits, 0.0), (_packing_fits, CLOSE)):  # the cheap test first
            low, high = -1, len(levels) - 1  # -1 stands for the value, which is reached
            while low < high and levels[high] > (1 + apart) * (value if low < 0 else levels[low]):
                middle = (low + high + 1) // 2
                if fit(*self.close(problem, float(levels[middle])), forced=forced, k=k):
                    low = middle
                else:
                    high = middle - 1
            levels = levels[: high + 1]
        return float(levels[-1]) if len(levels) else value

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return self.value(*chosen_part(problem, keep))

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The widest of k - 1 groups (see `_streamed`), or the k-th largest distance to the anchors."""
        apart = same_group_bound(problem, rows_of(problem.pairwise), keep=keep & problem.real)
        outside = anchor_min(problem).masked_fill(~problem.real, -math.inf).sort(dim=1, descending=True)
        bound = torch.minimum(apart, outside.values.gather(1, problem.k[:, None] - 1).squeeze(1))
        return torch.where(bound == math.inf, 0.0, bound)

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Nearest(problem, keep)

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


class _Nearest(Swaps):
    """The two nearest chosen tokens of every token, from the rows of the chosen: O(KN) a swap."""

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        rows = symmetric_rows(problem, self.slots, own=math.inf)
        self.rows = rows.masked_fill_(~self.filled[:, :, None], math.inf)
        self.outside = anchor_min(problem)

    def gains(self) -> Tensor:
        first, nearest, second = two_best(-self.rows, dim=1)
        slot = torch.arange(self.rows.shape[1], device=nearest.device)
        # without[b, s, n]: distance of token n to the choice once the token in s has left it
        leaves = nearest[:, None, :] == slot[:, None]
        without = torch.where(leaves, -second[:, None, :], -first[:, None, :])
        without = torch.minimum(without, self.outside[:, None, :])
        others = without.gather(2, self.slots[:, None, :].expand(-1, len(slot), -1))
        others = others.masked_fill(~self.filled[:, None, :], math.inf)
        others.diagonal(dim1=1, dim2=2).fill_(math.inf)
        after = torch.minimum(others.amin(2)[:, :, None], without)
        now = torch.minimum(-first, self.outside).gather(1, self.slots)
        now = now.masked_fill(~self.filled, math.inf).amin(1)[:, None, None]
        return _worth(after) - _worth(now)

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        row = symmetric_rows(self.problem, into[:, None], sample=sample, own=math.inf)
        self.rows[sample, slot] = row.squeeze(1)


def _worth(least: Tensor) -> Tensor:
    """A single token without anchors is worth 0."""
    return torch.where(least == math.inf, 0.0, least)


def metric_bound(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """Twice the value of a farthest-point choice `keep`: valid only when distances are a metric."""
    return 2 * problem.value(keep)


def _core_fits(close: np.ndarray, usable: np.ndarray, *, forced: np.ndarray, k: int) -> bool:
    """Whether k tokens are left once those without k - 1 others far from them are gone, again and again."""
    return bool(_core(close, usable, forced=forced, k=k).sum() >= k)


def _core(close: np.ndarray, usable: np.ndarray, *, forced: np.ndarray, k: int) -> np.ndarray:
    """`[N]` bool: tokens that may be among k; empty where a forced one may not."""
    stays = usable & ~close[forced].any(0)
    while True:
        fewer = stays & ((~close)[:, stays].sum(1) >= k)
        if not fewer[forced].all():
            return np.zeros_like(stays)
        if fewer.sum() == stays.sum():
            return stays
        stays = fewer


def _packing_fits(close: np.ndarray, usable: np.ndarray, *, forced: np.ndarray, k: int) -> bool:
    """Whether the linear program leaves room for k tokens; its bound counts whole ones."""
    stays = _core(close, usable, forced=forced, k=k)
    more = k - int(forced.sum())
    free = np.flatnonzero(stays & ~forced)
    if len(free) < more or not more:
        return not more
    return packing_bound(np.ones(len(free)), close[np.ix_(free, free)], k=more, goal=more) >= more
