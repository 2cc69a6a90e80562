"""Exact subset selection by mixed-integer linear programming."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._exact import (
    Answer,
    Decision,
    bisection,
    first_answer,
    generic_bound,
    solve_samples,
)
from pruneopt.parts.solvers._linear import TOLERANCE, run
from pruneopt.parts.solvers._walk import check_kind
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.kinds._program import Program
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class Milp(SubsetSolver):
    """Exact optimum of the kinds that are linear with binary choices, with a proved bound at any time.

    A kind that offers `linear` is one program.  One that offers `levels` is a bisection over the values that
    its optimum can have, each step asking for a choice that reaches the level (for max-min dispersion after
    Sayah and Irnich 2017).
    `backend="highs"` calls HiGHS through SciPy; `"cvxpy"` hands the same program to cvxpy with the solver
    named in `solver`, which is slower to set up.

    Objectives are centred and divided by their largest coefficient first, so that a solver's absolute
    tolerances mean the same at every scale.  The bound is the smaller of that of the kind and of the one
    that the solver proved, raised by 1e-7 of that coefficient; OPTIMAL says that it is within 1e-6 of the
    size of the objective.  Terms that differ by more than 1e7 in one objective may end as UNPROVED, and so
    may solvers other than HiGHS under cvxpy, which tell it no bound.

    `time_limit` seconds hold per sample; when they run out the status is TIME_LIMIT and the choice the best
    one found (`stats["first"]`: a greedy one where the solver has none).  Works on the host, one sample after
    another.
    """

    name: ClassVar[str] = "milp"
    source: ClassVar[str] = "HiGHS; max-min after Sayah and Irnich 2017"
    kinds = KindsOffering("linear", "levels")
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "host", "time_limit"})
    backend: str = param("highs", choices=("highs", "cvxpy"), doc="route to the solver")
    solver: str = param("HIGHS", doc="cvxpy's name of the solver, for backend=cvxpy")
    time_limit: float = param(60.0, above=0, doc="seconds per sample")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        words: list[str] = []
        first: list[bool] = []

        def one(single: SubsetProblem) -> Answer:
            if not single.rules.offers("linear"):
                return bisection(single, self, decide=self._decider(single, time.perf_counter()))
            program = single.rules.linear(single)
            outcome = run(program, self.backend, solver=self.solver, time_limit=self.time_limit)
            words.append(outcome.words)
            first.append(outcome.chosen is None and outcome.status is Status.TIME_LIMIT)
            if outcome.status is Status.INFEASIBLE or outcome.status is Status.FAILED:
                return Answer([], np.inf if outcome.status is Status.FAILED else -np.inf, outcome.status)
            chosen = (
                first_answer(single, self)[0] if outcome.chosen is None else _picked(outcome.chosen, program)
            )
            return Answer(chosen, min(outcome.bound, generic_bound(single, chosen)), outcome.status)

        return solve_samples(self, problem, one=one, tolerance=TOLERANCE, words=words, first=first)

    def _decider(self, problem: SubsetProblem, started: float) -> Callable[[float], Decision]:
        def decide(level: float) -> Decision:
            left = self.time_limit - (time.perf_counter() - started)
            if left <= 0:
                return "unknown"
            program = problem.rules.reaching(problem, level)
            if program is None:
                return None
            outcome = run(program, self.backend, solver=self.solver, time_limit=left)
            if outcome.status is Status.INFEASIBLE:
                return None
            return "unknown" if outcome.chosen is None else _picked(outcome.chosen, program)

        return decide


def _picked(x: np.ndarray, program: Program) -> list[int]:
    return [int(p) for p in program.place[x > 0.5]]
