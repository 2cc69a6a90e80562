"""Subset problems as mixed-integer linear programs, and the routes to a solver for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._objectives import anchor_sum, conflicts, symmetric_pairwise, unary_or
from pruneopt.problems.solution import Status
from pruneopt.problems.subset import SubsetProblem

# What HiGHS calls optimal: its gap and its feasibility, once the largest coefficient of an objective is 1.
TOLERANCE = 1e-6
ROUNDING = 1e-7  # and by how much of that coefficient a reduced cost of HiGHS, hence its bound, may be off


@dataclass
class Program:
    """`max c x + constant` over `low <= A x <= high`, `floor <= x <= ceiling`.

    The first `tokens` entries are binary.
    """

    tokens: int
    c: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)
    cols: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    height: int = 0
    constant: float = 0.0

    @property
    def unit(self) -> float:
        """Largest coefficient of the objective, 0 where all choices are worth the same."""
        return float(np.abs(self.c).max(initial=0.0))

    def centre(self, where: slice, times: float) -> None:
        """Take the middle of a block of the objective away from it, where its entries of x sum to `times`.

        Exact, and what is left has no digits lost to an offset that all choices share.
        """
        part = self.c[where]
        middle = (part.max() + part.min()) / 2
        self.c = self.c.copy()
        self.c[where] -= middle
        self.constant += float(middle) * times

    def add(self, rows: Any, cols: Any, values: Any, low: Any, high: Any) -> None:
        """Constraint block: triplets with rows counted from 0 within the block."""
        low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
        cols = np.asarray(cols)
        self.rows.append(np.broadcast_to(np.asarray(rows), cols.shape) + self.height)
        self.cols.append(cols)
        self.values.append(np.broadcast_to(np.asarray(values, float), cols.shape))
        self.low.append(low)
        self.high.append(high)
        self.height += len(low)

    def matrix(self) -> Any:
        from scipy.sparse import csr_array

        shape = (self.height, len(self.c))
        entries = np.concatenate(self.values), (np.concatenate(self.rows), np.concatenate(self.cols))
        return csr_array(entries, shape=shape)


@dataclass(frozen=True)
class Outcome:
    """How a program ended: status, chosen tokens (None without an answer), bound of the maximum, words."""

    status: Status
    chosen: np.ndarray | None
    bound: float
    words: str


def formulate(problem: SubsetProblem, sample: int) -> tuple[Program, np.ndarray]:
    """Program of one sample over its real tokens, and the places of those tokens.

    Kinds: top_k, quota, independent_set, max_sum (linearised with `sum_j y_ij = (k-1) x_i`) and
    facility_location (tokens assigned to one chosen token each).  `max_min` has its own bisection.
    Offsets that all choices share are in `Program.constant`.
    """
    usable = problem.real[sample]
    if problem.kind == "quota":  # no token of an empty group, however large its score
        assert problem.group is not None and problem.quota is not None
        group = problem.group[sample].masked_fill(~usable, 0)
        usable = usable & (problem.quota[sample][group] > 0)
    place = np.flatnonzero(usable.cpu().numpy())
    n, k = len(place), int(problem.k[sample])
    unary = unary_or(problem, 0.0)[sample].cpu().numpy()[place]
    floor = np.zeros(n)
    if problem.protected is not None:
        floor[problem.protected[sample].cpu().numpy()[place]] = 1
    program = Program(n, unary, floor, np.ones(n))
    every = np.arange(n)
    at_most = problem.kind == "independent_set"
    program.add(0, every, 1.0, 1 if at_most else k, k)
    if problem.kind == "quota":
        assert problem.group is not None and problem.quota is not None
        quota = problem.quota[sample].cpu().numpy()
        program.add(problem.group[sample].cpu().numpy()[place], every, 1.0, quota, quota)
    elif problem.kind == "independent_set":
        pairs = conflicts(problem)[sample].cpu().numpy()[np.ix_(place, place)]
        add_conflicts(program, pairs)
    elif problem.kind == "max_sum":
        distance = symmetric_pairwise(problem)[sample].cpu().numpy()[np.ix_(place, place)]
        program.c = unary + anchor_sum(problem)[sample].cpu().numpy()[place]
        if k > 1:
            _add_pairs(program, distance, k)
    elif problem.kind == "facility_location":
        assert problem.pairwise is not None
        similar = problem.pairwise[sample].double().cpu().numpy()[np.ix_(place, place)]
        weight = unary_or(problem, 1.0)[sample].cpu().numpy()[place]
        if (weight < 0).any():
            raise ProblemError(
                f"facility_location in sample {sample} has negative weights; milp cannot assign"
            )
        _add_assignment(program, similar * weight[:, None])
    if problem.kind in ("top_k", "quota", "max_sum"):
        program.centre(slice(0, n), k)
    return program, place


def add_conflicts(program: Program, pairs: np.ndarray) -> None:
    """At most one token of every greedy clique of conflicts; the cliques cover all conflicting pairs."""
    left = np.triu(pairs, 1)
    rows: list[np.ndarray] = []
    while True:
        first = np.flatnonzero(left.any(1))
        if not len(first):
            break
        i = int(first[0])
        clique, common = [i], pairs[i].copy()
        candidates = np.flatnonzero(left[i])
        for j in candidates:
            if common[j]:
                clique.append(int(j))
                common &= pairs[j]
        index = np.array(clique)
        left[np.ix_(index, index)] = False
        rows.append(index)
    for index in rows:
        program.add(0, index, 1.0, -np.inf, 1)


def _add_pairs(program: Program, distance: np.ndarray, k: int) -> None:
    n = program.tokens
    i, j = np.triu_indices(n, 1)
    pairs = np.arange(len(i))
    y = n + pairs
    program.c = np.concatenate([program.c, distance[i, j]])
    program.centre(slice(n, None), k * (k - 1) / 2)
    program.floor = np.concatenate([program.floor, np.zeros(len(i))])
    program.ceiling = np.concatenate([program.ceiling, np.ones(len(i))])
    for side in (i, j):
        rows = np.concatenate([pairs, pairs])
        values = np.concatenate([np.ones(len(i)), -np.ones(len(i))])
        program.add(rows, np.concatenate([y, side]), values, np.full(len(i), -np.inf), np.zeros(len(i)))
    # y_ij >= x_i + x_j - 1, which negative distances need
    values = np.concatenate([np.ones(len(i)), -np.ones(2 * len(i))])
    rows = np.concatenate([pairs, pairs, pairs])
    program.add(rows, np.concatenate([y, i, j]), values, np.full(len(i), -1.0), np.full(len(i), np.inf))
    rows = np.concatenate([i, j, np.arange(n)])
    cols = np.concatenate([y, y, np.arange(n)])
    values = np.concatenate([np.ones(2 * len(i)), np.full(n, -(k - 1.0))])
    program.add(rows, cols, values, np.zeros(n), np.zeros(n))


def _add_assignment(program: Program, worth: np.ndarray) -> None:
    n = program.tokens
    i, j = (a.ravel() for a in np.indices((n, n)))
    y = n + np.arange(n * n)
    program.c = np.concatenate([np.zeros(n), worth.ravel()])
    for row in range(n):  # every token is served once
        program.centre(slice(n + row * n, n + (row + 1) * n), 1)
    program.floor = np.concatenate([program.floor, np.zeros(n * n)])
    program.ceiling = np.concatenate([program.ceiling, np.ones(n * n)])
    program.add(i, y, 1.0, np.ones(n), np.ones(n))
    rows = np.concatenate([np.arange(n * n)] * 2)
    values = np.concatenate([np.ones(n * n), -np.ones(n * n)])
    program.add(rows, np.concatenate([y, j]), values, np.full(n * n, -np.inf), np.zeros(n * n))


def lp_bound(problem: SubsetProblem, time_limit: float = 60.0) -> Tensor:
    """`[B]` float64 optimum of the linear relaxation, an upper bound of the optimum; +inf at a limit.

    For the kinds of `formulate`.  Tighter than `bounds.py` for `max_sum` and `facility_location` at small N,
    and far dearer: O(N^2) variables.
    """
    outcomes = [
        run(formulate(problem, b)[0], "highs", "HIGHS", time_limit, relaxed=True)
        for b in range(problem.shape[0])
    ]
    bounds = [o.bound if o.status is Status.OPTIMAL else np.inf for o in outcomes]
    return torch.tensor(bounds, dtype=torch.float64, device=problem.k.device)


def run(program: Program, backend: str, solver: str, time_limit: float, relaxed: bool = False) -> Outcome:
    """Solve with HiGHS directly (`highs`) or through cvxpy with any solver it has (`cvxpy`).

    Solvers work with absolute tolerances, so they get the objective divided by its largest coefficient.  The
    bound comes back in the original units, raised by what their tolerances may have cost it; it is +inf where
    a solver proves none, whatever it calls its answer.
    """
    unit = program.unit
    scaled = replace(program, c=program.c / (unit or 1.0))
    outcome = (_run_highs if backend == "highs" else _run_cvxpy)(scaled, solver, time_limit, relaxed)
    spread = unit * (outcome.bound + ROUNDING) if unit else 0.0
    return replace(outcome, bound=spread + program.constant)


def _run_highs(program: Program, solver: str, time_limit: float, relaxed: bool) -> Outcome:
    from scipy.optimize import Bounds, LinearConstraint, milp

    integral = np.zeros(len(program.c))
    integral[: program.tokens] = 0 if relaxed else 1
    result = milp(
        -program.c,
        integrality=integral,
        bounds=Bounds(program.floor, program.ceiling),
        constraints=LinearConstraint(
            program.matrix(), np.concatenate(program.low), np.concatenate(program.high)
        ),
        options={"time_limit": max(time_limit, 1e-3), "mip_rel_gap": 0.0},
    )
    status = {0: Status.OPTIMAL, 1: Status.TIME_LIMIT, 2: Status.INFEASIBLE}.get(result.status, Status.FAILED)
    proved = result.fun if relaxed else result.mip_dual_bound
    bound = np.inf if proved is None or not status.ok else -float(proved)
    return Outcome(status, None if result.x is None else result.x[: program.tokens], bound, result.message)


def _run_cvxpy(program: Program, solver: str, time_limit: float, relaxed: bool) -> Outcome:
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
    matrix, low, high = program.matrix(), np.concatenate(program.low), np.concatenate(program.high)
    below, above, equal = np.isfinite(high) & (low != high), np.isfinite(low) & (low != high), low == high
    constraints = [whole >= program.floor, whole <= program.ceiling]
    for rows, build in (
        (below, lambda m: m @ whole <= high[below]),
        (above, lambda m: m @ whole >= low[above]),
        (equal, lambda m: m @ whole == high[equal]),
    ):
        if rows.any():
            constraints.append(build(matrix[np.flatnonzero(rows)]))
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
