"""What exact subset solvers share: a greedy first answer, bisection over levels, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._walk import answer_of
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem

# Tokens that are worth at least a level, None when that is impossible, "unknown" at a limit.
Decision = list[int] | None | str


@dataclass
class Answer:
    """Result of one sample: chosen places (empty when there is none), proved bound, status."""

    chosen: list[int]
    bound: float
    status: Status


def first_answer(problem: SubsetProblem, solver: SubsetSolver) -> tuple[list[int], float]:
    """The choice of the kind's own search for the only sample, or a greedy one, and its value."""
    solution = answer_of(problem.rules.search or problem.rules.greedy, solver, problem=problem)
    return solution.keep[0].nonzero().squeeze(1).tolist(), float(solution.value[0])


def generic_bound(problem: SubsetProblem, chosen: list[int]) -> float:
    """The bound of the kind for the only sample, +inf where there is none."""
    keep = torch.zeros(problem.shape, dtype=torch.bool, device=problem.k.device)
    keep[0, chosen] = True
    bound, _ = problem.bound(keep)
    return math.inf if bound is None else float(bound[0])


def solve_samples(
    solver: SubsetSolver,
    problem: SubsetProblem,
    *,
    one: Callable[[SubsetProblem], Answer],
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
        answer = one(problem.sample(b))
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


def bisection(problem: SubsetProblem, solver: SubsetSolver, *, decide: Callable[[float], Decision]) -> Answer:
    """Exact optimum of the only sample of a kind that offers `levels`.

    `decide(level)` says whether a choice is worth at least that.
    """
    chosen, value = first_answer(problem, solver)
    levels, bound = problem.rules.levels(problem), generic_bound(problem, chosen)
    levels = levels[(levels > value) & (levels <= bound)]
    low, high, refuted = -1, len(levels) - 1, len(levels)
    while low < high:
        middle = (low + high + 1) // 2
        found = decide(float(levels[middle]))
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
