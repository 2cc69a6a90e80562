"""Greedy subset solvers against the obvious loops."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor

from pruneopt.lab.clock import interleaved
from pruneopt.lab.subset.run import instance
from pruneopt.lab.targets.target import Target
from pruneopt.parts import SubsetSolver
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
