"""Checks of subset solvers against the optimum and against chance."""

from __future__ import annotations

import math

import torch

from pruneopt.parts import SubsetSolver
from pruneopt.problems.solution import Status
from pruneopt.testing import cases
from pruneopt.testing.core import changed, require
from pruneopt.testing.subset_choices import count_holds, optimum, size


def check_below_bound(solver: SubsetSolver, kind: str) -> None:
    """The value is at most the optimum found by enumeration, and the bound at least that."""
    for seed in (0, 1):
        problem = cases.subset(kind, tokens=10, k=4, seed=seed)
        solution = solver.solve(problem)
        best = optimum(solution.problem)
        slack = 1e-7 * best.abs().clamp_min(1)
        require((solution.value <= best + slack).all(), "the value exceeds the optimum")
        bound = solution.upper_bound
        if bound is not None:
            require(
                (bound >= best - slack).all(),
                f"upper_bound {bound.tolist()} is below the optimum {best.tolist()}",
            )


def check_optimal(solver: SubsetSolver, kind: str) -> None:
    """Tagged `exact`: the value is that of enumeration, with status OPTIMAL and no gap."""
    for seed in (2, 3):
        problem = cases.subset(kind, tokens=10, k=4, seed=seed, lengths=(10, 8))
        solution, best = solver.solve(problem), optimum(problem)
        off = (solution.value - best).abs().amax()
        require(off <= 1e-6, f"tagged 'exact' but {float(off):.2g} away from the enumerated optimum")
        require(
            all(s is Status.OPTIMAL for s in solution.status),
            f"an optimum with status {solution.status[0].name}",
        )


def check_beats_random(solver: SubsetSolver, kind: str) -> None:
    """The value is above the mean of twenty random choices of the same size."""
    problem = cases.subset(kind, batch=4, tokens=size(solver), k=5, seed=4)
    solution = solver.solve(problem)
    g = torch.Generator().manual_seed(0)
    if problem.rules.offers("broken"):
        return  # most random choices break its constraint
    total = torch.zeros(4, dtype=torch.float64)
    for _ in range(20):
        ranks = torch.rand(4, problem.shape[1], generator=g).argsort(1).argsort(1)
        total += solution.problem.value(ranks < 5) / 20
    better = float(solution.value.mean()) > float(total.mean())
    require(better, "worse than random on average; is the objective read, and with the right sign?")


def check_half_of_optimum(solver: SubsetSolver, kind: str) -> None:
    """Tagged `factor_two_on_metrics`: within a factor of two of the optimum for distances in the plane."""
    for seed in range(6):
        problem = cases.subset(kind, tokens=10, k=4, seed=seed, metric=True)
        value, best = solver.solve(problem).value, optimum(problem)
        worst = torch.where(best > 0, best / 2, 2 * best) - 1e-12
        require((value >= worst).all(), "more than a factor of two away from the optimum")


def check_submodular_bound(solver: SubsetSolver, kind: str) -> None:
    """Tagged `submodular_greedy`: at least 1 - 1/e of the optimum for similarities in [0, 1]."""
    for seed in range(6):
        problem = cases.subset(kind, tokens=12, k=3, seed=seed)
        heap = (torch.arange(12) * 5) % 3
        together = (heap[:, None] == heap).double()
        assert problem.pairwise is not None
        problem = changed(problem, unary=None, pairwise=0.9 * together + 0.1 * problem.pairwise)
        least = (1 - 1 / math.e) * optimum(problem)
        require((solver.solve(problem).value >= least).all(), "less than 1 - 1/e of the optimum")


def check_time_limit(solver: SubsetSolver, kind: str) -> None:
    """Tagged `time_limit`: a tiny limit ends soon, says so, and leaves a full choice with a bound."""
    part = changed(solver, time_limit=0.02)
    problem = cases.subset(kind, batch=1, tokens=40, k=12, seed=8)
    solution = part.solve(problem)
    require(solution.seconds < 20, f"a limit of 0.02 s took {solution.seconds:.0f} s")
    if solution.status[0] is Status.OPTIMAL:
        return
    require(solution.status[0] is Status.TIME_LIMIT, f"stopped with status {solution.status[0].name}")
    count_holds(solver, problem, solution=solution, where="(time limit)")
    bounded = solution.upper_bound is not None and bool(solution.upper_bound.isfinite().all())
    require(bounded, "stopped by the limit without a bound")
