"""Exact transport as a general linear programme: an independent witness.

Problem: `min sum C_ij P_ij`, `P >= 0`, rows sum to `a`, columns to `b`.  Update: the library's, simplex or
interior point; its multipliers are the potentials.
Sources: Kantorovich 1942; Huangfu and Hall 2018 (HiGHS).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pruneopt.errors import SpecError, nearest
from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import Answer, Atoms, each
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

_CVXPY = {
    "optimal": Status.OPTIMAL,
    "optimal_inaccurate": Status.MAX_ROUNDS,
    "user_limit": Status.TIME_LIMIT,
    "infeasible": Status.INFEASIBLE,
    "infeasible_inaccurate": Status.INFEASIBLE,
}


@dataclass(frozen=True)
class LinearProgram(TransportSolver):
    """`n m` variables, `n + m` equalities, through cvxpy or straight to HiGHS; float64 on the CPU.

    70 to 220 times slower than `emd`: a cross-check up to n=256, not a production path.  `route: cvxpy` takes
    any installed solver by its cvxpy name; building its model often costs more than solving it, which
    `route: direct` (HiGHS through highspy, constraint matrix built here) avoids.  Masses are scaled to about
    one, like costs, because the tolerances of these solvers are absolute.  No other solver is substituted.

    Needs the extra `lp`.
    """

    name: ClassVar[str] = "lp"
    source: ClassVar[str] = "Kantorovich 1942; HiGHS: Huangfu and Hall 2018"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})
    solver: str = param("HIGHS", doc="cvxpy's name of the solver")
    route: str = param("cvxpy", choices=("cvxpy", "direct"), doc="through cvxpy, or straight to HiGHS")
    time_limit: float | None = param(None, above=0, doc="seconds per problem (HiGHS only)")
    threads: int = param(0, low=0, doc="problems solved at the same time (direct route); 0 is one per core")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `OPTIMAL` where the certificate confirms it, or the reason why not.

        Raises SpecError when the library or the solver is not installed.
        """
        direct = self.route == "direct"
        if direct and self.solver != "HIGHS":
            raise SpecError(f"lp.route=direct is HiGHS only; use route=cvxpy for {self.solver}")
        if self.time_limit is not None and self.solver != "HIGHS":
            raise SpecError(f"lp.time_limit works with HIGHS only, not {self.solver}")
        run = _highs(self.time_limit) if direct else _cvxpy(self.solver, self.time_limit)

        def one(atoms: Atoms) -> Answer:
            scale = float(max(atoms.cost.shape))
            plan, f, g, rounds, status, words = run(atoms.cost, (atoms.a * scale, atoms.b * scale))
            if plan is None:
                words["says"] = f"{words['says']}; no plan came back, this one is the independent coupling"
                return Answer(atoms.a[:, None] * atoms.b[None, :], None, None, rounds, status, words)
            return Answer(np.maximum(plan, 0) / scale, f, g, rounds, status, words)

        return each(
            problem, one, solver=self.name, threads=(self.threads or os.cpu_count() or 1) if direct else 1
        )


def _missing(what: str, error: ImportError) -> SpecError:
    return SpecError(f"lp needs {what}: pip install 'pruneopt[lp]' ({error})")


def _cvxpy(solver: str, time_limit: float | None) -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise _missing("cvxpy", error) from error
    installed = cvxpy.installed_solvers()
    if solver not in installed:
        raise SpecError(f"lp.solver: cvxpy has no {solver!r} here{nearest(solver, installed)}")

    def run(cost: np.ndarray, masses: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
        a, b = masses
        plan = cvxpy.Variable(cost.shape, nonneg=True)
        rows, cols = cvxpy.sum(plan, axis=1) == a, cvxpy.sum(plan, axis=0) == b
        model = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(cost, plan))), [rows, cols])
        options = {} if time_limit is None else {"time_limit": time_limit}
        try:
            model.solve(solver=solver, **options)
        except cvxpy.error.SolverError as error:
            return None, None, None, 0, Status.FAILED, {"method": solver, "says": str(error)}
        words = {"method": solver, "says": model.status}
        status = _CVXPY.get(model.status, Status.FAILED)
        if plan.value is None or rows.dual_value is None:
            return None, None, None, 0, status, words
        rounds = model.solver_stats.num_iters
        rounds = int(rounds) if isinstance(rounds, (int, float)) else 0
        return plan.value, -rows.dual_value, -cols.dual_value, rounds, status, words

    return run


def _highs(time_limit: float | None) -> Any:
    try:
        import highspy
    except ImportError as error:
        raise _missing("highspy", error) from error
    ends = {
        highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
        highspy.HighsModelStatus.kTimeLimit: Status.TIME_LIMIT,
        highspy.HighsModelStatus.kIterationLimit: Status.MAX_ROUNDS,
        highspy.HighsModelStatus.kInfeasible: Status.INFEASIBLE,
    }

    def run(cost: np.ndarray, masses: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
        n, m = cost.shape
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = n * m, n + m
        model.col_cost_ = cost.ravel()
        model.col_lower_, model.col_upper_ = np.zeros(n * m), np.full(n * m, highspy.kHighsInf)
        model.row_lower_ = model.row_upper_ = np.concatenate(masses)
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.arange(0, 2 * n * m + 1, 2, dtype=np.int32)
        pairs = np.stack([np.repeat(np.arange(n), m), n + np.tile(np.arange(m), n)], 1)
        model.a_matrix_.index_ = pairs.ravel().astype(np.int32)
        model.a_matrix_.value_ = np.ones(2 * n * m)
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        if time_limit is not None:
            solver.setOptionValue("time_limit", time_limit)
        solver.passModel(model)
        solver.run()
        end = solver.getModelStatus()
        words = {"method": "HiGHS", "says": solver.modelStatusToString(end)}
        status = ends.get(end, Status.FAILED)
        answer = solver.getSolution()
        if not answer.value_valid or not answer.dual_valid:
            return None, None, None, 0, status, words
        dual = np.asarray(answer.row_dual)
        plan = np.asarray(answer.col_value).reshape(n, m)
        return plan, dual[:n], dual[n:], solver.getInfo().simplex_iteration_count, status, words

    return run
