"""Max-sum dispersion: the largest sum of distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._concave_quadratic import quadratic_bound
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._streamed import chosen_part, negative_type_bound, star_bound
from pruneopt.problems.kinds._swaps import Swaps, symmetric_rows
from pruneopt.problems.kinds._terms import anchor_sum, best_k, distances, pair_mask, unary_or
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class MaxSum(Kind):
    """Sum of `pairwise` distances within the choice, a pair once, and to anchors; plus `unary` if given."""

    name: ClassVar[str] = "max_sum"
    pairs: ClassVar[str] = "costs"
    symmetric: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    greedy = {"kind": "greedy_max_sum"}
    search = {"kind": "local_search"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        hot = keep.double()
        pairs = (hot * (distances(problem, 0.0) @ hot[:, :, None]).squeeze(2)).sum(1) / 2
        return pairs + (_own(problem) * keep).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The smaller of a star bound and the concave quadratic one (see `_concave_quadratic`).

        Star: a chosen token adds at most its own score plus half of its k-1 largest distances.
        """
        distance, own, simplex = distances(problem, 0.0), _own(problem), CappedSimplex.of(problem)
        other = distance.masked_fill(~pair_mask(problem), -math.inf)
        other.diagonal(dim1=1, dim2=2).fill_(-math.inf)
        batch, tokens = problem.shape
        stars = best_k(other.flatten(0, 1), (problem.k - 1).repeat_interleave(tokens)).view(batch, tokens)
        best = torch.minimum(simplex.most(own + stars / 2), quadratic_bound(distance, own, simplex=simplex))
        # what sums of so many terms of this size may lose to rounding
        size = own.abs().amax(1) + problem.k * distance.abs().amax((1, 2))
        return best + 1e-15 * (tokens + problem.k) * problem.k * size

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return self.value(*chosen_part(problem, keep))

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The concave quadratic bound from products for distances of negative type, the star bound else."""
        term = rows_of(problem.pairwise)
        found = negative_type_bound if term.negative_type else star_bound
        return found(problem, term, own=_own(problem))

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Sums(problem, keep)

    def linear(self, problem: SubsetProblem) -> Program:
        """An entry `y_ij` a pair, linearised with `sum_j y_ij = (k-1) x_i`."""
        program, k = choosing(problem), int(problem.k[0])
        program.c = placed(_own(problem), program.place)
        n = program.tokens
        if k > 1:
            i, j = np.triu_indices(n, 1)
            pairs, one = np.arange(len(i)), np.ones(len(i))
            y = program.extend(placed(distances(problem, 0.0), program.place)[i, j])
            program.centre(slice(n, None), k * (k - 1) / 2)
            for side in (i, j):
                rows, cols = np.concatenate([pairs, pairs]), np.concatenate([y, side])
                program.add(rows, cols, values=np.concatenate([one, -one]), low=-np.inf * one, high=0 * one)
            # y_ij >= x_i + x_j - 1, which negative distances need
            rows, cols = np.concatenate([pairs, pairs, pairs]), np.concatenate([y, i, j])
            program.add(rows, cols, values=np.concatenate([one, -one, -one]), low=-one, high=np.inf * one)
            rows, cols = np.concatenate([i, j, np.arange(n)]), np.concatenate([y, y, np.arange(n)])
            values = np.concatenate([one, one, np.full(n, -(k - 1.0))])
            program.add(rows, cols, values=values, low=np.zeros(n), high=np.zeros(n))
        program.centre(slice(0, n), k)
        return program


class _Sums(Swaps):
    """`total_n`, what token n adds to the choice, beside the rows of the chosen: O(N) a swap."""

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        rows = symmetric_rows(problem, self.slots, own=0.0)
        self.rows = rows.masked_fill_(~self.filled[:, :, None], 0)
        self.total = _own(problem) + self.rows.sum(1)

    def gains(self) -> Tensor:
        comes = self.total[:, None, :] - self.rows
        return comes.sub_(self.total.gather(1, self.slots)[:, :, None])

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        row = symmetric_rows(self.problem, into[:, None], sample=sample, own=0.0).squeeze(1)
        self.total[sample] += row - self.rows[sample, slot]
        self.rows[sample, slot] = row


def _own(problem: SubsetProblem) -> Tensor:
    """`[B,N]` what a token adds by itself: its score and its distances to the anchors."""
    return unary_or(problem, 0.0) + anchor_sum(problem)
