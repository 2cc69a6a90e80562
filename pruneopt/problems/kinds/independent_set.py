"""Weighted independent set: the best tokens of which no two are too alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._packing import packing_bound
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._swaps import Swaps
from pruneopt.problems.kinds._terms import modular, pair_mask, unary_or

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem, Terms


class IndependentSet(Kind):
    """Sum of `unary` over at most k tokens, no two of them with `pairwise > threshold`."""

    name: ClassVar[str] = "independent_set"
    needs: ClassVar[frozenset[str]] = frozenset({"unary", "threshold"})
    pairs: ClassVar[str] = "kernels"
    symmetric: ClassVar[bool] = True
    at_most: ClassVar[bool] = True
    scaled: ClassVar[frozenset[str]] = frozenset({"unary"})
    greedy = {"kind": "greedy_conflict", "on_shortfall": "stop"}
    search = {"kind": "local_search"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return modular(problem, keep)

    def broken(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return (conflicts(problem) & keep[:, :, None] & keep[:, None, :]).flatten(1).any(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The linear programming bound with clique inequalities (see `_packing`); on the host.

        At least one token is always chosen.  -inf where protected tokens conflict.
        """
        every = [_bound_one(problem.sample(b)) for b in range(problem.shape[0])]
        return torch.tensor(every, dtype=torch.float64, device=problem.k.device)

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Conflicts(problem, keep)

    def linear(self, problem: SubsetProblem) -> Program:
        program = choosing(problem, least=1)
        program.c = placed(unary_or(problem, 0.0), program.place)
        program.add_conflicts(placed(conflicts(problem), program.place))
        return program

    def draw(self, unit: Tensor, quality: Tensor, *, k: int) -> Terms:
        """Conflicts are the most similar tenth of all pairs of the first sample."""
        terms = super().draw(unit, quality, k=k)
        return {**terms, "threshold": float(terms["pairwise"][0].double().quantile(0.9))}  # type: ignore[index]


class _Conflicts(Swaps):
    """How many chosen tokens each token conflicts with: O(N) a swap."""

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        self.pairs, self.worth = conflicts(problem), unary_or(problem, 0.0)
        wide = self.slots[:, :, None].expand(-1, -1, self.pairs.shape[2])
        self.rows = self.pairs.gather(1, wide) & self.filled[:, :, None]
        self.against = self.rows.sum(1)

    def gains(self) -> Tensor:
        lost = self.worth.gather(1, self.slots).masked_fill(~self.filled, 0)
        gains = self.worth[:, None, :] - lost[:, :, None]
        return gains.masked_fill_(self.against[:, None, :] > self.rows, -math.inf)

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        row = self.pairs[sample, into]
        self.against[sample] += row.to(torch.int64) - self.rows[sample, slot].to(torch.int64)
        self.rows[sample, slot] = row


def conflicts(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` bool: pairs of different real tokens more alike than `threshold`; as alike is no conflict.

    Compared in the dtype of `pairwise`, into which the threshold is rounded: a float32 entry that was
    written as 0.3 equals a threshold of 0.3.
    """
    assert problem.threshold is not None and problem.pairwise is not None
    pairs = problem.pairwise > problem.threshold
    pairs = pairs | pairs.transpose(1, 2)
    pairs.diagonal(dim1=1, dim2=2).fill_(False)
    return pairs & pair_mask(problem)


def _bound_one(problem: SubsetProblem) -> float:
    worth, pairs = unary_or(problem, 0.0)[0].cpu().numpy(), conflicts(problem)[0].cpu().numpy()
    forced = CappedSimplex.of(problem).forced[0].cpu().numpy()
    if pairs[np.ix_(forced, forced)].any():
        return -math.inf
    free = np.flatnonzero(problem.real[0].cpu().numpy() & ~forced & ~pairs[forced].any(0))
    if not forced.any() and worth[free].max() <= 0:
        return float(worth[free].max())
    more = packing_bound(worth[free], pairs[np.ix_(free, free)], k=int(problem.k[0] - forced.sum()))
    return float(worth[forced].sum()) + max(more, 0.0)
