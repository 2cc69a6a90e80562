"""Max-sum dispersion: the largest sum of distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._terms import anchor_sum, best_k, distances, pair_mask, unary_or

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class MaxSum(Kind):
    """Sum of `pairwise` distances within the choice, a pair once, and to anchors; plus `unary` if given."""

    name: ClassVar[str] = "max_sum"
    pairs: ClassVar[str] = "costs"
    symmetric: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    greedy = {"kind": "greedy_max_sum"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        hot = keep.double()
        pairs = (hot * (distances(problem, 0.0) @ hot[:, :, None]).squeeze(2)).sum(1) / 2
        return pairs + (_own(problem) * keep).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The smaller of a star bound and a projected spectral bound; protected tokens are not used.

        Star: a chosen token adds at most its own score plus half of its k-1 largest distances.  Spectral:
        write the indicator as `k/n 1 + y` with y orthogonal to 1 and `|y|^2 = k - k^2/n`, and bound the
        linear part by Cauchy-Schwarz and the quadratic part by the largest eigenvalue of the centred distance
        matrix, which is at most zero for distances of negative type such as 1 - cosine.
        """
        distance, own = distances(problem, 0.0), _own(problem)
        real, k = problem.real, problem.k
        other = distance.masked_fill(~pair_mask(problem), -math.inf)
        other.diagonal(dim1=1, dim2=2).fill_(-math.inf)
        batch, tokens = problem.shape
        stars = best_k(other.flatten(0, 1), (k - 1).repeat_interleave(tokens)).view(batch, tokens)
        star = best_k((own + stars / 2).masked_fill(~real, -math.inf), k)
        n = real.sum(1).double()
        share = k.double() / n
        radius = (k.double() - k.double() ** 2 / n).clamp_min(0)
        hot = real.double()
        linear = (distance @ (hot * share[:, None])[:, :, None]).squeeze(2) + own
        centre = torch.diag_embed(hot) - hot[:, :, None] * hot[:, None, :] / n[:, None, None]
        linear_off = (centre @ linear[:, :, None]).squeeze(2)
        eigen = torch.linalg.eigvalsh(centre @ distance @ centre)
        # never below zero: the centred matrix has the eigenvector 1, with value 0, which y has no part in
        top = eigen[:, -1].clamp_min(0) + 1e-15 * tokens * eigen.abs().amax(1)
        pairs = (hot * (distance @ hot[:, :, None]).squeeze(2)).sum(1) / 2
        middle = share**2 * pairs + share * (own * hot).sum(1)
        spectral = middle + linear_off.norm(dim=1) * radius.sqrt() + top * radius / 2
        return torch.minimum(star, spectral)

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        distance = distances(problem, 0.0)
        total = (distance @ keep.double()[:, :, None]).squeeze(2) + _own(problem)
        return total[:, None, :] - distance - total[:, :, None]

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
                program.add(rows, cols, np.concatenate([one, -one]), -np.inf * one, 0 * one)
            # y_ij >= x_i + x_j - 1, which negative distances need
            rows, cols = np.concatenate([pairs, pairs, pairs]), np.concatenate([y, i, j])
            program.add(rows, cols, np.concatenate([one, -one, -one]), -one, np.inf * one)
            rows, cols = np.concatenate([i, j, np.arange(n)]), np.concatenate([y, y, np.arange(n)])
            values = np.concatenate([one, one, np.full(n, -(k - 1.0))])
            program.add(rows, cols, values, np.zeros(n), np.zeros(n))
        program.centre(slice(0, n), k)
        return program


def _own(problem: SubsetProblem) -> Tensor:
    """`[B,N]` what a token adds by itself: its score and its distances to the anchors."""
    return unary_or(problem, 0.0) + anchor_sum(problem)
