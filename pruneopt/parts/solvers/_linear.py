"""The routes from a mixed-integer linear program of a kind to a solver."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._program import Program
from pruneopt.problems.solution import Status
from pruneopt.problems.subset import SubsetProblem

# What HiGHS calls optimal: its gap and its feasibility, once the largest coefficient of an objective is 1.
TOLERANCE = 1e-6
ROUNDING = 1e-7  # and by how much of that coefficient a reduced cost of HiGHS, hence its bound, may be off


@dataclass(frozen=True)
class Outcome:
    """How a program ended: status, chosen tokens (None without an answer), bound of the maximum, words."""

    status: Status
    chosen: np.ndarray | None
    bound: float
    words: str


def matrix(program: Program) -> Any:
    """The constraints as a sparse array."""
    from scipy.sparse import csr_array

    entries = np.concatenate(program.values), (np.concatenate(program.rows), np.concatenate(program.cols))
    return csr_array(entries, shape=(program.height, len(program.c)))


def lp_bound(problem: SubsetProblem, time_limit: float = 60.0) -> Tensor:
    """`[B]` float64 optimum of the linear relaxation, an upper bound of the optimum; +inf at a limit.

    For the kinds that offer `linear`.  Often tighter than their `bound` at small N, and far dearer: a kind of
    pairs has O(N^2) variables.
    """
    outcomes = [
        run(
            problem.rules.linear(problem.sample(b)),
            "highs",
            solver="HIGHS",
            time_limit=time_limit,
            relaxed=True,
        )
        for b in range(problem.shape[0])
    ]
    bounds = [o.bound if o.status is Status.OPTIMAL else np.inf for o in outcomes]
    return torch.tensor(bounds, dtype=torch.float64, device=problem.k.device)


def run(program: Program, backend: str, *, solver: str, time_limit: float, relaxed: bool = False) -> Outcome:
    """Solve with HiGHS directly (`highs`) or through cvxpy with any solver it has (`cvxpy`).

    Solvers work with absolute tolerances, so they get the objective divided by its largest coefficient.  The
    bound comes back in the original units, raised by what their tolerances may have cost it; it is +inf where
    a solver proves none, whatever it calls its answer.
    """
    unit = program.unit
    scaled = replace(program, c=program.c / (unit or 1.0))
    route = _run_highs if backend == "highs" else _run_cvxpy
    outcome = route(scaled, solver=solver, time_limit=time_limit, relaxed=relaxed)
    spread = unit * (outcome.bound + ROUNDING) if unit else 0.0
    return replace(outcome, bound=spread + program.constant)


def _run_highs(program: Program, *, solver: str, time_limit: float, relaxed: bool) -> Outcome:
    from scipy.optimize import Bounds, LinearConstraint, milp

    integral = np.zeros(len(program.c))
    integral[: program.tokens] = 0 if relaxed else 1
    result = milp(
        -program.c,
        integrality=integral,
        bounds=Bounds(program.floor, program.ceiling),
        constraints=LinearConstraint(
            matrix(program), np.concatenate(program.low), np.concatenate(program.high)
        ),
        options={"time_limit": max(time_limit, 1e-3), "mip_rel_gap": 0.0},
    )
    status = {0: Status.OPTIMAL, 1: Status.TIME_LIMIT, 2: Status.INFEASIBLE}.get(result.status, Status.FAILED)
    proved = result.fun if relaxed else result.mip_dual_bound
    bound = np.inf if proved is None or not status.ok else -float(proved)
    return Outcome(status, None if result.x is None else result.x[: program.tokens], bound, result.message)


def _run_cvxpy(program: Program, *, solver: str, time_limit: float, relaxed: bool) -> Outcome:
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ProblemError("the cvxpy route needs cvxpy: pip install 'pruneopt[lp]'") from error
    if solver not in cp.installed_solvers():
        known = ", ".join(cp.installed_solvers())
        raise ProblemError(f"cvxpy has no solver {solver!r} here; installed: {known}")
    n = program.tokens
    x = cp.Variable(n) if relaxed else cp.Variable(n, boolean=True)
    parts = [x]
    if len(program.c) > n:
        parts.append(cp.Variable(len(program.c) - n))
    whole = cp.hstack(parts)
    sparse, low, high = matrix(program), np.concatenate(program.low), np.concatenate(program.high)
    below, above, equal = np.isfinite(high) & (low != high), np.isfinite(low) & (low != high), low == high
    constraints = [whole >= program.floor, whole <= program.ceiling]
    for rows, build in (
        (below, lambda m: m @ whole <= high[below]),
        (above, lambda m: m @ whole >= low[above]),
        (equal, lambda m: m @ whole == high[equal]),
    ):
        if rows.any():
            constraints.append(build(sparse[np.flatnonzero(rows)]))
    task = cp.Problem(cp.Maximize(program.c @ whole), constraints)
    options: dict[str, Any] = {}
    if solver == "HIGHS":
        options = {"time_limit": time_limit, "mip_rel_gap": 0.0}
    started = time.perf_counter()
    try:
        task.solve(solver=solver, **options)
    except cp.error.SolverError as error:
        return Outcome(Status.FAILED, None, np.inf, f"{solver}: {error}")
    words = f"{solver} through cvxpy: {task.status} after {time.perf_counter() - started:.3g} s"
    known_status = {
        "optimal": Status.OPTIMAL,
        "infeasible": Status.INFEASIBLE,
        "user_limit": Status.TIME_LIMIT,
        "optimal_inaccurate": Status.TIME_LIMIT,
    }
    status = known_status.get(task.status, Status.FAILED)
    proved = None
    if solver == "HIGHS" and status.ok:  # other solvers keep their bounds to themselves
        info: Any = task.solver_stats.extra_stats
        proved = info.objective_function_value if relaxed else info.mip_dual_bound
    bound = np.inf if proved is None else -float(proved)
    return Outcome(status, None if x.value is None else np.asarray(x.value), bound, words)
