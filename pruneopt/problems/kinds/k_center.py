"""k-center: no token is far from a kept one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing
from pruneopt.problems.kinds._streamed import shared_server_bound, smallest_chosen
from pruneopt.problems.kinds._terms import anchor_min, pair_mask
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class KCenter(Kind):
    """Minus the radius: the largest `pairwise` distance of a token to the nearest kept token or anchor.

    Entry (n, s) is what n pays when s serves it; the two directions may differ.  A kept token pays nothing,
    whatever stands on the diagonal, and no distance counts as less than 0.
    """

    name: ClassVar[str] = "k_center"
    source: ClassVar[str] = "Gonzalez 1985; Hochbaum and Shmoys 1985"
    pairs: ClassVar[str] = "costs"
    anchored: ClassVar[bool] = True
    greedy = {"kind": "greedy_k_center"}
    search = {"kind": "local_search"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return -_nearest(served(problem), outside(problem), keep=keep).amax(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """Tokens that must share a server: of any `free + 1` of them two do, or one is served from outside.

        `free` is `k` less the protected tokens, which serve from outside, as anchors do.  Two tokens share a
        server at no less than their meeting distance, the least that the dearer of them pays at any token.
        So the smallest meeting distance (or distance to the outside) within any `free + 1` tokens is a lower
        bound of the radius.  Tried are `keep` with the token that it serves worst, a farthest-point walk over
        meeting distances, and the tokens that are far from all others.  No triangle inequality is needed;
        where distances obey it, a meeting distance is at least half of the distance, so the bound of a
        farthest-point choice is at least half of its radius (Gonzalez 1985).
        """
        cost, real = served(problem), problem.real
        forced = torch.zeros_like(real) if problem.protected is None else problem.protected & real
        near = _nearest(cost, outside(problem), keep=forced)
        free = problem.k - forced.sum(1)
        alone = cost.clone()
        alone.diagonal(dim1=1, dim2=2).fill_(math.inf)
        far = torch.minimum(alone.amin(2), near).masked_fill(~real | forced, 0)
        low = far.sort(dim=1, descending=True).values.gather(1, free.clamp_max(far.shape[1] - 1)[:, None])
        low = low.squeeze(1).masked_fill(free >= far.shape[1], 0)
        low = torch.maximum(low, _meeting_walk(cost, near.masked_fill(~real, -1), free=free))
        return -torch.maximum(low, _meeting_of(cost, near, keep=keep & real & ~forced, free=free))

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return -_served_from(problem, keep).amax(1)

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The same for `keep` with the token that it serves worst (see `_streamed`)."""
        forced = torch.zeros_like(keep) if problem.protected is None else problem.protected & problem.real
        near, term = _served_from(problem, forced), rows_of(problem.pairwise)
        return -shared_server_bound(problem, term, near=near, keep=keep)

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        cost, rest = served(problem), outside(problem)[:, :, None]
        tokens = cost.shape[1]
        two = cost.masked_fill(~keep[:, None, :], math.inf).topk(min(2, tokens), dim=2, largest=False)
        # what token n pays once j has come: with its server still there, and with its server gone
        stays = torch.minimum(torch.minimum(two.values[:, :, :1], rest), cost)
        moves = torch.minimum(torch.minimum(two.values[:, :, -1:], rest), cost)
        server = two.indices[:, :, :1].expand(-1, -1, tokens)
        none = torch.zeros_like(cost)
        of_others = none.scatter_reduce(1, server, stays, "amax").topk(min(2, tokens), dim=1)
        place = torch.arange(tokens, device=cost.device)[None, :, None]
        first, second = of_others.values[:, :1], of_others.values[:, -1:]
        after = torch.where(of_others.indices[:, :1] == place, second, first)
        after = torch.maximum(after, none.scatter_reduce(1, server, moves, "amax"))
        return -after - self.value(problem, keep)[:, None, None]

    def levels(self, problem: SubsetProblem) -> np.ndarray:
        found = torch.cat([served(problem)[0][pair_mask(problem)[0]], outside(problem)[0]])
        return -np.unique(found[found.isfinite()].cpu().numpy())[::-1]

    def reaching(self, problem: SubsetProblem, level: float) -> Program:
        """A set cover: every token that no anchor serves has a kept one within the radius."""
        program = choosing(problem)
        needy = (problem.real[0] & (outside(problem)[0] > -level)).cpu().numpy()[program.place]
        close = (served(problem)[0] <= -level).cpu().numpy()[np.ix_(program.place, program.place)]
        rows, cols = np.nonzero(close[needy])
        program.add(rows, cols, values=1.0, low=np.ones(needy.sum()), high=np.full(needy.sum(), np.inf))
        return program


def served(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` float64 what n pays when s serves it; padding pays nothing and serves nobody."""
    assert problem.pairwise is not None
    cost = problem.pairwise.double().clamp_min(0)
    cost = cost.masked_fill(~problem.real[:, None, :], math.inf).masked_fill(~problem.real[:, :, None], 0)
    cost.diagonal(dim1=1, dim2=2).zero_()
    return cost


def outside(problem: SubsetProblem) -> Tensor:
    """`[B,N]` float64 what a token pays at the nearest anchor; 0 at padding."""
    return anchor_min(problem).clamp_min(0).masked_fill(~problem.real, 0)


def _served_from(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """`[B,N]` float64 what a token pays at the nearest of `keep` and the anchors, by rows; 0 at padding."""
    near = torch.minimum(smallest_chosen(rows_of(problem.pairwise), keep), outside(problem))
    return near.masked_fill(keep | ~problem.real, 0)


def _nearest(cost: Tensor, outside: Tensor, *, keep: Tensor) -> Tensor:
    return torch.minimum(cost.masked_fill(~keep[:, None, :], math.inf).amin(2), outside)


def _meeting_walk(cost: Tensor, near: Tensor, *, free: Tensor) -> Tensor:
    """`[B]` least meeting distance within `free + 1` far apart tokens; `near` `[B,N]` is to the outside."""
    row = torch.arange(len(cost), device=cost.device)
    low = torch.zeros_like(near[:, 0])
    for t in range(int(free.max()) + 1):
        pick = near.argmax(1)
        low = torch.where(free == t, near[row, pick], low)
        near = torch.minimum(near, torch.maximum(cost, cost[row, pick][:, None, :]).amin(2))
    return low.clamp_min(0)


def _meeting_of(cost: Tensor, near: Tensor, *, keep: Tensor, free: Tensor) -> Tensor:
    """`[B]` the same within `keep` `[B,N]` and the token that it serves worst; 0 where those are too few."""
    last = _nearest(cost, near, keep=keep).argmax(1, keepdim=True)
    members = keep.scatter(1, last, True)
    order = (~members).to(torch.int8).argsort(dim=1, stable=True)[:, : int(members.sum(1).max())]
    inside = members.gather(1, order)
    rows = cost.gather(1, order[:, :, None].expand(-1, -1, cost.shape[2]))
    low = near.gather(1, order).masked_fill(~inside, math.inf).amin(1)
    for t in range(order.shape[1] - 1):
        meet = torch.maximum(rows[:, t + 1 :], rows[:, t : t + 1]).amin(2)
        meet = meet.masked_fill(~(inside[:, t + 1 :] & inside[:, t : t + 1]), math.inf)
        low = torch.minimum(low, meet.amin(1))
    return low.masked_fill((members.sum(1) <= free) | ~low.isfinite(), 0)
