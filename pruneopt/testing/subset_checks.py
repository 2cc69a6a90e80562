"""Checks of subset solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import all_kinds
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.testing import cases
from pruneopt.testing.core import Check, CheckFailure, checks_that, require
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.subset_choices import count_holds, size
from pruneopt.testing.subset_optimum import (
    check_beats_random,
    check_below_bound,
    check_half_of_optimum,
    check_optimal,
    check_submodular_bound,
    check_time_limit,
)
from pruneopt.testing.subset_relations import (
    check_batch,
    check_degenerate,
    check_dtype,
    check_global_rng,
    check_inputs_pure,
    check_nested,
    check_permutation,
    check_rows,
    check_scale,
    check_ties,
)


def check_kinds(solver: SubsetSolver) -> None:
    """The declared kinds exist, and every other kind is refused with a ProblemError."""
    known = [kind.name for kind in all_kinds()]
    unknown = set(solver.kinds) - set(known)
    require(
        solver.kinds and not unknown, f"kinds {sorted(solver.kinds)} are not all known: {', '.join(known)}"
    )
    for kind in set(known) - solver.kinds:
        try:
            solver.solve(cases.subset(kind))
        except ProblemError:
            continue
        require(False, f"{kind} is not declared in `kinds`, yet it is solved; raise ProblemError")


def check_exact_budget(solver: SubsetSolver, kind: str) -> None:
    """Exactly k distinct real tokens for k = 1, in between, N-1 and N; k = N is the identity."""
    n = size(solver)
    for k in (1, 5, n - 1, n):
        problem = cases.subset(kind, tokens=n, k=k)
        solution = solver.solve(problem)
        count_holds(solver, problem, solution=solution, where=f"(k={k}, N={n})")


def check_protected(solver: SubsetSolver, kind: str) -> None:
    """Protected tokens are kept and counted in k."""
    for k in (1, 5):
        problem = cases.subset(kind, tokens=size(solver), k=k, protect=True)
        count_holds(solver, problem, solution=solver.solve(problem), where=f"(protected, k={k})")


def check_fields(solver: SubsetSolver, kind: str) -> None:
    """The solution reports itself: solver, seconds, statuses, and a bound or a reason for none."""
    problem = cases.subset(kind, tokens=size(solver))
    solution = solver.solve(problem)
    require(isinstance(solution, SubsetSolution), f"solve returned {type(solution).__name__}")
    require(solution.solver == solver.name, f"solution.solver is {solution.solver!r}, not {solver.name!r}")
    require(
        len(solution.ended) == 2 and all(isinstance(s, Status) for s in solution.ended),
        "one Status per sample",
    )
    require(0 < solution.seconds < 600, f"seconds is {solution.seconds}; measure with time.perf_counter()")
    require(solution.upper_bound is not None or solution.no_bound, "neither a bound nor a reason for none")
    require(solution.keep.device == problem.k.device, "the choice is on another device than the problem")


def subset_checks(solver: SubsetSolver) -> Iterator[Check]:
    """Checks of a subset solver, according to its tags."""
    tags = solver.tags
    steady = "chaotic" not in tags
    yield from part_checks(solver)
    yield from checks_that({check_kinds: True})
    applies = {
        check_exact_budget: True,
        check_protected: True,
        check_fields: True,
        check_below_bound: True,
        check_inputs_pure: True,
        check_global_rng: True,
        check_degenerate: True,
        check_batch: steady,
        check_dtype: steady,
        check_permutation: steady and "uses_order" not in tags,
        check_ties: steady and not tags & {"uses_order", "exact"},
        check_beats_random: "cost_blind" not in tags,
        check_optimal: "exact" in tags,
        check_half_of_optimum: "factor_two_on_metrics" in tags,
        check_submodular_bound: "submodular_greedy" in tags,
        check_nested: "nested" in tags,
        check_rows: "rows" in tags,
        check_time_limit: "time_limit" in tags,
        check_scale: steady,
    }
    for check in checks_that(applies):
        yield replace(check, run=partial(_for_each_kind, check.run))


def _for_each_kind(check: Callable[..., None], solver: SubsetSolver) -> None:
    """Run a check on every kind that a solver declares; a failure says on which."""
    for kind in sorted(solver.kinds):
        try:
            check(solver, kind)
        except CheckFailure as error:
            raise CheckFailure(f"{kind}: {error}") from error
