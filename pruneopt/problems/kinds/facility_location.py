"""Facility location: every token is served by the most similar kept one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._terms import best_k, pair_mask, unary_or

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class FacilityLocation(Kind):
    """Sum over all tokens of their largest `pairwise` similarity to the choice, weighted by `unary` if given.

    Entry (n, s) is what n gains when s is chosen; the two directions may differ, and the diagonal counts.
    """

    name: ClassVar[str] = "facility_location"
    pairs: ClassVar[str] = "kernels"
    scaled: ClassVar[frozenset[str]] = frozenset({"pairwise"})
    greedy = {"kind": "lazy_greedy"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        assert problem.pairwise is not None
        best = problem.pairwise.double().masked_fill(~keep[:, None, :], -math.inf).amax(2)
        return (best.masked_fill(~problem.real, 0) * unary_or(problem, 1.0)).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """Best of the trivial bound and the data-dependent one around `keep`; protected tokens are not used.

        For a submodular value F and any choice S, `OPT <= F(S) + sum of the k largest gains over S`
        (Leskovec et al. 2007); never worse than the 1 - 1/e of greedy.
        """
        if problem.unary is not None and bool((problem.unary.masked_fill(~problem.real, 0) < 0).any()):
            return "negative weights: the value is not submodular, so gains bound nothing"
        return facility_bound(problem, keep)

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        assert problem.pairwise is not None
        similar = problem.pairwise.double().masked_fill(~pair_mask(problem), 0)
        weight = unary_or(problem, 1.0)[:, :, None]
        chosen = similar.masked_fill(~keep[:, None, :], -math.inf)
        two = chosen.topk(min(2, chosen.shape[2]), dim=2)
        first, second = two.values[:, :, :1], two.values[:, :, -1:]
        base = (torch.maximum(similar, first) - first) * weight
        lost = (torch.maximum(similar, second) - torch.maximum(similar, first)) * weight
        served = two.indices[:, :, :1].expand(-1, -1, lost.shape[2])
        by_server = torch.zeros_like(lost).scatter_add_(1, served, lost)
        return base.sum(1)[:, None, :] + by_server

    def linear(self, problem: SubsetProblem) -> Program:
        """An entry for every way to serve a token; every token is served once, by a chosen one."""
        assert problem.pairwise is not None
        program = choosing(problem)
        weight = placed(unary_or(problem, 1.0), program.place)
        if (weight < 0).any():
            raise ProblemError("facility_location has negative weights; milp cannot assign")
        n = program.tokens
        i, j = (a.ravel() for a in np.indices((n, n)))
        worth = placed(problem.pairwise.double(), program.place) * weight[:, None]
        y = program.extend(worth.ravel())
        for row in range(n):
            program.centre(slice(n + row * n, n + (row + 1) * n), 1)
        program.add(i, y, 1.0, np.ones(n), np.ones(n))
        one = np.ones(n * n)
        rows, cols = np.concatenate([np.arange(n * n)] * 2), np.concatenate([y, j])
        program.add(rows, cols, np.concatenate([one, -one]), -np.inf * one, 0 * one)
        return program


def facility_bound(problem: SubsetProblem, keep: Tensor) -> Tensor:
    """The bound for non-negative weights."""
    assert problem.pairwise is not None
    real = problem.real
    weight = unary_or(problem, 1.0)
    similar = problem.pairwise.double().masked_fill(~pair_mask(problem), -math.inf)
    trivial = (similar.amax(2).masked_fill(~real, 0) * weight).sum(1)
    covered = similar.masked_fill(~keep[:, None, :], -math.inf).amax(2)
    base = (covered.masked_fill(~real, 0) * weight).sum(1)
    more = torch.relu(similar - covered[:, :, None]).nan_to_num(0.0, posinf=0.0)
    more = more.masked_fill(~real[:, :, None], 0)
    gain = (more * weight[:, :, None]).sum(1).masked_fill(~real, -math.inf)
    some = (keep & real).any(1)
    return torch.minimum(trivial, torch.where(some, base + best_k(gain, problem.k), math.inf))
