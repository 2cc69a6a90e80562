"""Exact subset selection by mixed-integer linear programming."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._exact import (
    Answer,
    Decision,
    first_answer,
    generic_bound,
    max_min_bisection,
    solve_samples,
)
from pruneopt.parts.solvers._linear import TOLERANCE, Program, add_conflicts, formulate, run
from pruneopt.parts.solvers._walk import check_kind
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class Milp(SubsetSolver):
    """Exact optimum of the kinds that are linear with binary choices, with a proved bound at any time.

    `max_min` is a bisection over the occurring distances, each step asking whether k tokens fit pairwise at
    least that far apart (Sayah and Irnich 2017); the others are one program (see `linear.py`).
    `backend="highs"` calls HiGHS through SciPy; `"cvxpy"` hands the same program to cvxpy with the solver
    named in `solver`, which is slower to set up.

    Objectives are centred and divided by their largest coefficient first, so that a solver's absolute
    tolerances mean the same at every scale.  The bound is the smaller of that of `bounds.py` and of the one
    that the solver proved, raised by 1e-7 of that coefficient; OPTIMAL says that it is within 1e-6 of the
    size of the objective.  Terms that differ by more than 1e7 in one objective may end as UNPROVED, and so
    may solvers other than HiGHS under cvxpy, which tell it no bound.

    `time_limit` seconds hold per sample; when they run out the status is TIME_LIMIT and the choice the best
    one found (`stats["first"]`: a greedy one where the solver has none).  Works on the host, one sample after
    another.
    """

    name: ClassVar[str] = "milp"
    source: ClassVar[str] = "HiGHS; max-min after Sayah and Irnich 2017"
    kinds: ClassVar[frozenset[str]] = frozenset(
        {"top_k", "quota", "independent_set", "max_min", "max_sum", "facility_location"}
    )
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "host", "time_limit"})
    backend: str = param("highs", choices=("highs", "cvxpy"), doc="route to the solver")
    solver: str = param("HIGHS", doc="cvxpy's name of the solver, for backend=cvxpy")
    time_limit: float = param(60.0, above=0, doc="seconds per sample")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        words: list[str] = []
        first: list[bool] = []

        def one(single: SubsetProblem) -> Answer:
            if single.kind == "max_min":
                return max_min_bisection(single, self._decider(single, time.perf_counter()))
            program, place = formulate(single, 0)
            outcome = run(program, self.backend, self.solver, self.time_limit)
            words.append(outcome.words)
            first.append(outcome.chosen is None and outcome.status is Status.TIME_LIMIT)
            if outcome.status is Status.INFEASIBLE or outcome.status is Status.FAILED:
                return Answer([], np.inf if outcome.status is Status.FAILED else -np.inf, outcome.status)
            chosen = first_answer(single)[0] if outcome.chosen is None else _picked(outcome.chosen, place)
            return Answer(chosen, min(outcome.bound, generic_bound(single, chosen)), outcome.status)

        return solve_samples(self, problem, one, tolerance=TOLERANCE, words=words, first=first)

    def _decider(self, problem: SubsetProblem, started: float):  # type: ignore[no-untyped-def]
        k = int(problem.k[0])
        forced = np.zeros(problem.shape[1], dtype=bool)
        if problem.protected is not None:
            forced = problem.protected[0].cpu().numpy()

        def decide(close: np.ndarray, usable: np.ndarray) -> Decision:
            left = self.time_limit - (time.perf_counter() - started)
            if left <= 0:
                return "unknown"
            if (forced & ~usable).any():
                return None
            place = np.flatnonzero(usable)
            if len(place) < k:
                return None
            pairs = close[np.ix_(place, place)].copy()
            np.fill_diagonal(pairs, False)
            program = Program(
                len(place), np.zeros(len(place)), forced[place].astype(float), np.ones(len(place))
            )
            program.add(0, np.arange(len(place)), 1.0, k, k)
            add_conflicts(program, pairs)
            outcome = run(program, self.backend, self.solver, left)
            if outcome.status is Status.INFEASIBLE:
                return None
            return "unknown" if outcome.chosen is None else _picked(outcome.chosen, place)

        return decide


def _picked(x: np.ndarray, place: np.ndarray) -> list[int]:
    return [int(p) for p in place[x > 0.5]]
