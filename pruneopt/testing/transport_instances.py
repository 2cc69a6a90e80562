"""Instances for the checks of transport solvers, and what a plan on them must satisfy."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.testing import cases
from pruneopt.testing.core import require

LOOSE = 0.05  # L1 marginal violation allowed to a plan that claims no convergence


def accuracy(solver: TransportSolver) -> float:
    """Excess over the optimum, in units of the cost range, that the solver declares for these instances.

    The class attribute `accuracy`; 1e-6 for exact solvers and 0.1 for others that say nothing.
    """
    declared = getattr(solver, "accuracy", None)
    return float(declared) if declared is not None else 1e-6 if "exact" in solver.tags else 0.1


def instance(solver: TransportSolver, family: str = "random", **shape: int) -> TransportProblem:
    """An instance that the solver accepts: square and uniform where it takes nothing else."""
    if "uniform_square" in solver.tags:
        shape["cols"] = shape.get("rows", 12)
        return cases.transport(family, uniform=True, **shape)  # type: ignore[arg-type]
    return cases.transport(family, **shape)  # type: ignore[arg-type]


def excess(problem: TransportProblem, solution: TransportSolution) -> Tensor:
    """`[B]` value minus the optimum of the witness, in units of the cost range."""
    return (solution.value - cases.transport_optimum(problem)) / problem.cost_range().double()


def worst_excess(solver: TransportSolver, problem: TransportProblem) -> float:
    """Largest excess of what a solver finds; infinite where that is no number."""
    return float(excess(problem, solver.solve(problem)).nan_to_num(nan=torch.inf).amax())


def marginals_hold(
    solver: TransportSolver, problem: TransportProblem, *, solution: TransportSolution
) -> None:
    """Fail unless the plan is non-negative and meets the marginals that status and order promise."""
    plan = solution.plan.double()
    require(
        plan.shape == problem.cost.shape,
        f"the plan has shape {list(plan.shape)}, cost {list(problem.cost.shape)}",
    )
    require(
        plan.isfinite().all(),
        f"the plan is not finite, status {solution.status[0].name}; work in the log domain",
    )
    require(float(plan.amin()) >= -1e-9, f"the plan has negative mass {float(plan.amin()):.2g}")
    row = (plan.sum(2) - problem.a.double()).abs().sum(1)
    col = (plan.sum(1) - problem.b.double()).abs().sum(1)
    fine = 1e-5 if problem.cost.dtype == torch.float64 else 1e-3
    tolerance = max(fine, 2 * float(getattr(solver, "tolerance", None) or 0))
    for side, missed, what in (("source", row, "rows miss `a`"), ("target", col, "columns miss `b`")):
        if solution.order in (side, "both"):
            worst = float(missed.amax())
            require(worst <= fine, f"order is {solution.order!r}, yet {what} by {worst:.2g}")
    for i, status in enumerate(solution.status):
        error = max(float(row[i]), float(col[i]))
        if "relaxed" in solver.tags:
            continue
        if status in (Status.CONVERGED, Status.OPTIMAL):
            require(
                error <= tolerance,
                f"status {status.name}, yet the marginals are missed by {error:.2g}: not converged?",
            )
        elif status.ok:
            require(error <= LOOSE, f"the marginals are missed by {error:.2g} (L1); are `a` and `b` used?")
