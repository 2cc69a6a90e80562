"""Choices relaxed to shares, `0 <= x <= 1` and `sum x = k`, and bounds of concave functions over them.

For a concave f, any x and its gradient, no y is worth more than `f(x) + <gradient, y - x>`, and the largest
of that over all y is a sum of the k best entries.  So every iterate of any method certifies, and a method may
stop early.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem

FAR = 1e3
# Value `[B]` and gradient `[B,N]` of a concave function at shares `[B,N]`.
Tangent = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class CappedSimplex:
    """Shares `[B,N]` of `k` `[B]` tokens: between 0 and 1, 1 at `forced` and 0 outside `real` `[B,N]`."""

    k: Tensor
    real: Tensor
    forced: Tensor

    @staticmethod
    def of(problem: SubsetProblem) -> CappedSimplex:
        """The relaxed choices of a problem with an exact budget."""
        forced = torch.zeros_like(problem.real) if problem.protected is None else problem.protected
        return CappedSimplex(problem.k, problem.real, forced)

    @property
    def free(self) -> Tensor:
        """`[B,N]` bool: tokens whose share is open."""
        return self.real & ~self.forced

    @property
    def left(self) -> Tensor:
        """`[B]` float64: what the free tokens share."""
        return (self.k - self.forced.sum(1)).double()

    def at(self, samples: Tensor) -> CappedSimplex:
        """Those of `samples` (indices)."""
        return CappedSimplex(self.k[samples], self.real[samples], self.forced[samples])

    def without_forced(self) -> CappedSimplex:
        """The shares of the free tokens alone."""
        return CappedSimplex(self.k - self.forced.sum(1), self.free, torch.zeros_like(self.forced))

    def best_first(self, values: Tensor) -> Tensor:
        """`[B,N]` tokens as a choice takes them: forced ones first, then the largest `values`."""
        rank = values.masked_fill(~self.real, -math.inf).masked_fill(self.forced, math.inf)
        return rank.argsort(dim=1, descending=True, stable=True)

    def choice(self, values: Tensor) -> Tensor:
        """`[B,N]` bool: the choice of the largest sum of `values` `[B,N]`; of equals the lower index."""
        order = self.best_first(values)
        first = torch.arange(values.shape[1], device=values.device) < self.k[:, None]
        return torch.zeros_like(self.real).scatter(1, order, first)

    def most(self, values: Tensor) -> Tensor:
        """`[B]` largest `<values, y>` over all shares y: that of a choice."""
        return values.masked_fill(~self.choice(values), 0).sum(1)

    def most_of_each(self, values: Tensor) -> Tensor:
        """`[B,N]` the same for every count from 1 to N in the place of k; tokens that are not there add 0."""
        return values.masked_fill(~self.real, 0).gather(1, self.best_first(values)).cumsum(1)

    def centre(self) -> Tensor:
        """The free tokens in equal shares."""
        share = self.left / self.free.sum(1).clamp_min(1)
        return torch.where(self.free, share[:, None], self.forced.double())

    def nearest(self, point: Tensor) -> Tensor:
        """The shares at the smallest Euclidean distance of `point` `[B,N]`: it is moved down evenly and cut.

        What is left after moving down by t falls from t = point - 1, where a share leaves 1, to t = point,
        where it is 0; so the right t lies between two of these corners.
        """
        free = self.free
        high = point.masked_fill(~free, -math.inf).amax(1, keepdim=True).nan_to_num(neginf=0.0)
        corners = torch.cat([point - 1, point], 1).masked_fill(~torch.cat([free, free], 1), math.inf)
        corners, order = torch.minimum(corners, high).sort(dim=1, stable=True)
        turn = torch.where(order < point.shape[1], -1.0, 1.0).double()
        slope = turn.masked_fill(~torch.cat([free, free], 1).gather(1, order), 0).cumsum(1)
        lost = (slope[:, :-1] * corners.diff(dim=1)).cumsum(1)
        sums = free.sum(1, keepdim=True) + torch.cat([torch.zeros_like(lost[:, :1]), lost], 1)
        after = (sums <= self.left[:, None] + 1e-9).int().argmax(1, keepdim=True).clamp_min(1)
        before = after - 1
        fall = -slope.gather(1, before).clamp_max(-1)
        down = corners.gather(1, before) + (sums.gather(1, before) - self.left[:, None]) / fall
        x = (point - down).clamp(0, 1).masked_fill(~free, 0)
        # a point far away has lost digits: the sum is mended, which bounds rely on more than on 0 <= x <= 1
        mend = (self.left - x.sum(1)) / free.sum(1).clamp_min(1)
        return torch.where(free, x + mend[:, None], self.forced.double())

    def scaled(self, weight: Tensor) -> Tensor:
        """Shares in proportion to `weight` `[B,N]` >= 0, cut at 1: the nearest in relative entropy."""
        weight = weight.masked_fill(~self.free, 0)
        top = weight.sort(dim=1, descending=True).values
        rest = top.flip(1).cumsum(1).flip(1)
        places = self.left[:, None] - torch.arange(top.shape[1], device=top.device)
        # the first place at which no share is above 1 once those before it are cut
        cut = (places * top <= rest).int().argmax(1, keepdim=True)
        factor = places.gather(1, cut) / rest.gather(1, cut).clamp_min(1e-300)
        return torch.where(self.free, (weight * factor).clamp(0, 1), self.forced.double())

    def certify(self, tangent: Tangent, rounds: int) -> Tensor:
        """`[B]` the smallest bound of a concave function that `rounds` projected steps from the centre find.

        Steps of Barzilai and Borwein 1988, none longer than `FAR` sizes of the simplex; a step that loses is
        taken back and tried at a quarter.
        """
        x = self.centre()
        value, slope = tangent(x)
        best = self.bound(x, value, slope=slope)
        step = 1 / slope.masked_fill(~self.free, 0).abs().amax(1, keepdim=True).clamp_min(1e-300)
        longest = FAR * step
        for _ in range(rounds):
            there = self.nearest(x + step * slope)
            found, turned = tangent(there)
            best = torch.minimum(best, self.bound(there, found, slope=turned))
            way, change = there - x, slope - turned
            curve = (way * change).sum(1, keepdim=True) / way.square().sum(1, keepdim=True).clamp_min(1e-300)
            worse = (found < value)[:, None]
            step = torch.where(worse, step / 4, torch.minimum(1 / curve.clamp_min(1e-300), longest))
            x, slope = torch.where(worse, x, there), torch.where(worse, slope, turned)
            value = torch.maximum(value, found)
        return best

    def bound(self, x: Tensor, value: Tensor, *, slope: Tensor) -> Tensor:
        """`[B]`: no share is worth more than the tangent at `x` allows."""
        return value + self.most(slope) - (slope * x).sum(1)
