"""What exact subset solvers share: a greedy first answer, bisection over distances, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers.local_search import LocalSearch
from pruneopt.problems.kinds._bounds import upper_bound
from pruneopt.problems.kinds._objectives import anchor_min, symmetric_pairwise
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem

# Tokens that lie pairwise at least this far apart, None when that is impossible, "unknown" at a limit.
Decision = list[int] | None | str


@dataclass
class Answer:
    """Result of one sample: chosen places (empty when there is none), proved bound, status."""

    chosen: list[int]
    bound: float
    status: Status


def sample_of(problem: SubsetProblem, sample: int) -> SubsetProblem:
    """The same problem with one sample."""

    def one(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[sample : sample + 1]

    k = problem.k[sample : sample + 1]
    return replace(
        problem,
        k=k,
        unary=one(problem.unary),
        pairwise=one(problem.pairwise),
        mask=one(problem.mask),
        protected=one(problem.protected),
        anchors=one(problem.anchors),
        group=one(problem.group),
        quota=one(problem.quota),
        counts=(int(k),),
    )


def first_answer(problem: SubsetProblem) -> tuple[list[int], float]:
    """A greedy choice of the only sample, improved by swaps, and its value."""
    solution = LocalSearch().solve(problem)
    return solution.keep[0].nonzero().squeeze(1).tolist(), float(solution.value[0])


def generic_bound(problem: SubsetProblem, chosen: list[int]) -> float:
    """The bound of `bounds.py` for the only sample, +inf where there is none."""
    keep = torch.zeros(problem.shape, dtype=torch.bool, device=problem.k.device)
    keep[0, chosen] = True
    bound, _ = upper_bound(problem, keep)
    return math.inf if bound is None else float(bound[0])


def solve_samples(
    solver: SubsetSolver,
    problem: SubsetProblem,
    one: Callable[[SubsetProblem], Answer],
    *,
    tolerance: float = 1e-9,
    **stats: object,
) -> SubsetSolution:
    """Run `one` on every sample in turn and collect the answers, bounds as they are.

    `tolerance` is the one of `SubsetSolution`, within which a claimed optimum stands.
    """
    started = time.perf_counter()
    keep = torch.zeros(problem.shape, dtype=torch.bool, device=problem.k.device)
    bounds, ended, seconds = [], [], []
    for b in range(problem.shape[0]):
        begun = time.perf_counter()
        answer = one(sample_of(problem, b))
        keep[b, answer.chosen] = True
        bounds.append(answer.bound)
        ended.append(answer.status)
        seconds.append(time.perf_counter() - begun)
    solution = SubsetSolution(
        seconds=time.perf_counter() - started,
        stats={"sample_seconds": seconds, **stats},
        problem=problem,
        keep=keep,
        ended=tuple(ended),
        solver=solver.name,
    )
    proved = torch.tensor(bounds, dtype=torch.float64, device=keep.device)
    return replace(solution, proved_bound=proved, tolerance=tolerance)


def max_min_bisection(problem: SubsetProblem, decide: Callable[[np.ndarray, np.ndarray], Decision]) -> Answer:
    """Exact max-min dispersion of the only sample by asking, for occurring distances, whether k tokens fit.

    `decide(close, usable)` gets which pairs of tokens are too close `[N,N]` and which tokens may be used.
    """
    chosen, value = first_answer(problem)
    k = int(problem.k[0])
    outside = anchor_min(problem)[0].cpu().numpy()
    if k == 1 and not np.isfinite(outside).any():
        return Answer(chosen, 0.0, Status.OPTIMAL)
    real = problem.real[0].cpu().numpy()
    distance = symmetric_pairwise(problem)[0].cpu().numpy()
    inside = np.flatnonzero(real)
    upper = np.triu_indices(len(inside), 1)
    occurring = np.concatenate([distance[np.ix_(inside, inside)][upper], outside[np.isfinite(outside)]])
    levels = np.unique(occurring)
    bound = generic_bound(problem, chosen)
    levels = levels[(levels > value) & (levels <= bound)]
    low, high, refuted = -1, len(levels) - 1, len(levels)
    while low < high:
        middle = (low + high + 1) // 2
        found = decide(distance < levels[middle], real & (outside >= levels[middle]))
        if isinstance(found, list):
            chosen, low = found, middle
            continue
        high = middle - 1
        if found is None:
            refuted = middle
    best = value if low < 0 else float(levels[low])
    if low == refuted - 1:
        return Answer(chosen, best, Status.OPTIMAL)
    return Answer(chosen, float(levels[refuted - 1]), Status.TIME_LIMIT)
