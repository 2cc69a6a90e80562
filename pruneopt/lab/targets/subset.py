"""Greedy subset solvers against the obvious loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pruneopt.lab.clock import interleaved
from pruneopt.lab.subset.run import instance
from pruneopt.lab.targets.target import Target
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry


def loop_farthest_point(distance: Tensor, k: int) -> list[list[int]]:
    """Sample by sample, the distance to all chosen tokens recomputed in every round."""
    chosen = []
    for d in distance:
        alone = d + torch.diag(torch.full((len(d),), math.inf, dtype=d.dtype))
        picks = [int(alone.min(1).values.argmax())]
        while len(picks) < k:
            near = d[picks].min(0).values
            near[picks] = -math.inf
            picks.append(int(near.argmax()))
        chosen.append(picks)
    return chosen


def loop_log_det(kernel: Tensor, k: int) -> list[list[int]]:
    """Sample by sample, the residual variance given all chosen tokens recomputed in every round."""
    chosen = []
    for matrix in kernel:
        picks: list[int] = []
        while len(picks) < k:
            residual = matrix.diagonal().clone()
            if picks:
                cross = matrix[picks]
                residual -= (cross * torch.linalg.solve(matrix[picks][:, picks], cross)).sum(0)
                residual[picks] = -math.inf
            picks.append(int(residual.argmax()))
        chosen.append(picks)
    return chosen


def numpy_farthest_point(distance: np.ndarray, k: int) -> np.ndarray:
    """A running minimum, sample by sample, in plain NumPy.

    It owns its matrices, so the diagonal is made infinite in place for the first pick, and mended.
    """
    order = np.empty((len(distance), k), dtype=np.int64)
    for d, picks in zip(distance, order, strict=True):
        own = d.diagonal().copy()
        np.fill_diagonal(d, np.inf)
        picks[0] = d.min(1).argmax()
        np.fill_diagonal(d, own)
        near = d[picks[0]].copy()
        near[picks[0]] = -np.inf
        for t in range(1, k):
            picks[t] = pick = near.argmax()
            near[pick] = -np.inf
            np.minimum(near, d[pick], out=near)
    return order


def numpy_log_det(kernel: np.ndarray, k: int) -> np.ndarray:
    """An incremental Cholesky, sample by sample, in plain NumPy: one matrix-vector product a pick."""
    order = np.empty((len(kernel), k), dtype=np.int64)
    for matrix, picks in zip(kernel, order, strict=True):
        left = matrix.diagonal().copy()
        factor = np.zeros((k, len(matrix)), dtype=matrix.dtype)
        for t in range(k):
            picks[t] = pick = left.argmax()
            row = (matrix[pick] - factor[:t, pick] @ factor[:t]) / np.sqrt(left[pick])
            factor[t] = row
            left -= row * row
            left[pick] = -np.inf
    return order


NUMPY = {"farthest_point": numpy_farthest_point, "greedy_log_det": numpy_log_det}
SHAPES = ((576, 64, 8), (4096, 256, 1))  # tokens, kept, pictures


def numpy_targets(*, shapes: Sequence[tuple[int, int, int]] = SHAPES, repeats: int = 15) -> list[Target]:
    """The same two against plain NumPy with one matrix-vector product a pick, in turns; best seconds."""
    found = []
    for name, plain in NUMPY.items():
        solver = cast(type[SubsetSolver], registry("solvers").get(name))()
        (kind,) = solver.kinds
        for tokens, k, batch in shapes:
            matrix = cast(Tensor, instance(kind, tokens, batch=batch).pairwise)
            # a rank of all tokens, so that nothing is chosen by rounding
            matrix = matrix + torch.eye(tokens) if find_kind(kind).definite else matrix
            problem = SubsetProblem.build(kind, k, pairwise=matrix)
            array = matrix.numpy().copy()
            solve, loop = partial(solver.solve, problem), partial(plain, array, k)
            ours, theirs = interleaved(solve, loop, repeats=repeats)
            same = (solve().order.numpy() == loop()).all(1).sum()  # type: ignore[union-attr]
            what = f"{name} / plain NumPy, {tokens} tokens, {k} kept, batch {batch}"
            note = f"the same picks in {same} of {batch} samples"
            found.append(Target(what, ours / theirs, "at most", 1.0, "x", ours, theirs, note))
    return found


def subset_targets(*, tokens: int = 576, k: int = 64, batch: int = 8, repeats: int = 5) -> list[Target]:
    """Farthest point and log-det greedy against those loops; the choices must be the same."""
    found = []
    for name, loop in (("farthest_point", loop_farthest_point), ("greedy_log_det", loop_log_det)):
        solver = cast(type[SubsetSolver], registry("solvers").get(name))()
        (kind,) = solver.kinds
        matrix = cast(Tensor, instance(kind, tokens, batch=batch).pairwise)
        problem = SubsetProblem.build(kind, k, pairwise=matrix)
        slow, fast = interleaved(partial(loop, matrix, k), partial(solver.solve, problem), repeats=repeats)
        keep = solver.solve(problem).keep
        same = sum(set(row.nonzero().squeeze(1).tolist()) == set(picks)
                   for row, picks in zip(keep, loop(matrix, k), strict=True))  # fmt: skip
        note = f"the same tokens in {same} of {batch} samples"
        found.append(Target(f"loop / {name}", slow / fast, "at least", 5.0, "x", slow, fast, note))
    return found
