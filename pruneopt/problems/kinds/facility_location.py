"""Facility location: every target is served by the kept token that is best for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing
from pruneopt.problems.kinds._serving import serving_bound
from pruneopt.problems.kinds._terms import pair_mask, unary_or

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class FacilityLocation(Kind):
    """Sum over all targets of their largest gain from the choice.

    The targets are the tokens, which gain their `pairwise` similarity weighted by `unary` if given, and the
    external `anchors`, which gain minus what it costs to serve them; either may be missing.  Entry (n, s)
    is what n gains when s is chosen; the two directions may differ, and the diagonal counts.  Over a cost it
    is transport from k sources of any mass, at the least cost.
    """

    name: ClassVar[str] = "facility_location"
    pairs: ClassVar[str] = "kernels"
    serves: ClassVar[bool] = True
    scaled: ClassVar[frozenset[str]] = frozenset({"pairwise", "anchors"})
    greedy = {"kind": "lazy_greedy"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        gain, weight = served(problem)
        best = gain.double().masked_fill(~keep[:, None, :], -math.inf).amax(2)
        return (best.masked_fill(weight == 0, 0) * weight).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """The Lagrangian bound (see `_serving`), with first prices around `keep`.

        It is never above the trivial bound, nor above that of Leskovec et al. 2007 around `keep`, which is
        never worse than the 1 - 1/e of greedy.
        """
        if problem.unary is not None and bool((problem.unary.masked_fill(~problem.real, 0) < 0).any()):
            return "negative weights: the value is not submodular, so gains bound nothing"
        gain, weight = served(problem)
        worth = gain.double() * weight[:, :, None]
        best = worth.masked_fill(~problem.real[:, None, :], -math.inf).amax(2)
        first = worth.masked_fill(~(keep & problem.real)[:, None, :], -math.inf).amax(2)
        first = torch.where(first == -math.inf, best, first)  # nobody is chosen
        return torch.minimum(best.sum(1), serving_bound(worth, first, simplex=CappedSimplex.of(problem)))

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        gain, weight = served(problem)
        gain, weight = gain.double(), weight[:, :, None]
        chosen = gain.masked_fill(~keep[:, None, :], -math.inf)
        two = chosen.topk(min(2, chosen.shape[2]), dim=2)
        first, second = two.values[:, :, :1], two.values[:, :, -1:]
        base = (torch.maximum(gain, first) - first) * weight
        lost = (torch.maximum(gain, second) - torch.maximum(gain, first)) * weight
        server = two.indices[:, :, :1].expand(-1, -1, lost.shape[2])
        tokens = lost.shape[2]
        by_server = lost.new_zeros(len(lost), tokens, tokens).scatter_add_(1, server, lost)
        return base.sum(1)[:, None, :] + by_server

    def check(self, problem: SubsetProblem) -> None:
        if problem.pairwise is None and problem.unary is not None:
            raise ProblemError(
                "unary weighs tokens that are served, and only anchors are; leave it out, or give pairwise"
            )

    def linear(self, problem: SubsetProblem) -> Program:
        """An entry for every way to serve a target; every target is served once, by a chosen token."""
        program = choosing(problem)
        gain, weight = (t[0].double().cpu().numpy() for t in served(problem))
        if (weight < 0).any():
            raise ProblemError("facility_location has negative weights; milp cannot assign")
        there = np.flatnonzero(weight)
        n, targets = program.tokens, len(there)
        i, j = (a.ravel() for a in np.indices((targets, n)))
        worth = gain[np.ix_(there, program.place)] * weight[there, None]
        y = program.extend(worth.ravel())
        for row in range(targets):
            program.centre(slice(n + row * n, n + (row + 1) * n), 1)
        program.add(i, y, values=1.0, low=np.ones(targets), high=np.ones(targets))
        one = np.ones(targets * n)
        rows, cols = np.concatenate([np.arange(targets * n)] * 2), np.concatenate([y, j])
        program.add(rows, cols, values=np.concatenate([one, -one]), low=-np.inf * one, high=0 * one)
        return program


def served(problem: SubsetProblem) -> tuple[Tensor, Tensor]:
    """What every target gains from every token, `[B,R,N]`, and its weight `[B,R]` float64, 0 if absent.

    Entries of absent targets and of padded tokens are 0; without padding tokens are not copied.
    """
    gains, weights = [], []
    if problem.pairwise is not None:
        whole = problem.mask is None
        gains.append(problem.pairwise if whole else problem.pairwise.masked_fill(~pair_mask(problem), 0))
        weights.append(unary_or(problem, 1.0))
    if problem.anchors is not None:
        entries = (problem.anchors < math.inf) & problem.real[:, None, :]
        gains.append(-problem.anchors.masked_fill(~entries, 0))
        weights.append(entries.any(2).double())
    if len(gains) == 1:
        return gains[0], weights[0]
    return torch.cat(gains, 1), torch.cat(weights, 1)
