"""The first token of a walk over distances."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._walk import needed_unary
from pruneopt.problems.rows import Rows
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored, rows_of

SEEDS = ("max_nn_distance", "max_mean_distance", "unary", "first")
MANY = 512  # rows that are computed at once


def seed_score(rule: str, solver: SubsetSolver, *, problem: SubsetProblem) -> Tensor:
    """`[B,N]` whose largest real entry is the first token of a walk over distances.

    `max_nn_distance`: distance to the nearest other token (DivPrune); `max_mean_distance`: mean distance to
    the others (TrimTokenator, ZSPAPrune ports); `unary`: the scores; `first`: the lowest index.
    """
    assert problem.pairwise is not None
    real, pairs = problem.real, rows_of(problem.pairwise)
    if rule == "unary":
        return needed_unary(solver, problem, why="its seed")
    if rule == "first":
        score = torch.zeros(problem.shape, device=real.device)
    elif rule == "max_mean_distance":
        total = pairs.sums(problem.mask)  # compared as float32: equal tokens stay equal
        score = (total - pairs.own()).to(pairs.like.dtype)
    else:
        score = least_of_others(pairs, problem)
    return score.masked_fill(~real, -math.inf)


def least_of_others(term: Rows, problem: SubsetProblem) -> Tensor:
    """`[B,N]` the smallest entry of every row among the other real tokens.

    Where rows must be computed, only at those tokens whose entry may be the largest; -inf at the others.
    """
    if isinstance(problem.pairwise, Unstored):
        return _few(term, problem.real)
    if problem.mask is None and term.like.device.type == "cpu":
        return torch.from_numpy(np.stack([_beside(m) for m in term.dense().detach().numpy()]))
    entries = term.block(slice(None))
    if problem.mask is not None:
        entries.masked_fill_(~problem.mask[:, None, :], math.inf)
    entries.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return entries.amin(2)


def _beside(matrix: np.ndarray) -> np.ndarray:
    """`[N]` the smallest entry of every row beside its own, in one pass: rows are cut at the diagonal."""
    tokens = len(matrix)
    place = np.arange(tokens)
    own = place * (tokens + 1)
    cuts = np.stack([place * tokens, own, own + 1], 1).ravel()[1:-1]  # nothing is left of the first entry
    ends = np.full(1, np.inf, dtype=matrix.dtype)
    least = np.concatenate([ends, np.minimum.reduceat(matrix.ravel(), cuts), ends]).reshape(tokens, 3)
    return np.minimum(least[:, 0], least[:, 2])


def _few(term: Rows, real: Tensor) -> Tensor:
    """A row bounds all other rows of a symmetric term, so the rows with the largest bounds are read first.

    It ends when no bound reaches the largest entry.  At worst all rows are read.
    """
    batch, tokens = real.shape
    symmetric = term.symmetric
    most = torch.full(real.shape, math.inf, dtype=term.like.dtype, device=real.device)
    most = most.masked_fill(~real, -math.inf)
    found = torch.full_like(most, -math.inf)
    count = min(tokens, 64)
    rows = torch.arange(count, device=real.device).mul(tokens).div(count, rounding_mode="floor")
    rows = rows.expand(batch, -1)
    while True:
        entries = term.block(rows).masked_fill_(~real[:, None, :], math.inf)
        entries.scatter_(2, rows[:, :, None], math.inf)
        padding = ~real.gather(1, rows)
        found.scatter_(1, rows, entries.amin(2).masked_fill_(padding, -math.inf))
        if symmetric:
            most = torch.minimum(most, entries.masked_fill_(padding[:, :, None], math.inf).amin(1))
        most.scatter_(1, rows, -math.inf)
        if not bool((most >= found.amax(1, keepdim=True)).logical_and_(most > -math.inf).any()):
            return found
        count = min(tokens, 2 * count, MANY)
        rows = most.topk(count, dim=1).indices
