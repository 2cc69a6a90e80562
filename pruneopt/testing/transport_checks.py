"""Checks of transport solvers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pruneopt.errors import ProblemError
from pruneopt.parts import TransportSolver
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.testing import cases
from pruneopt.testing.core import Check, changed, checks_that, require
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.purity import require_own_generator, require_pure, tensors_in
from pruneopt.testing.transport_instances import accuracy, instance, marginals_hold, worst_excess
from pruneopt.testing.transport_proofs import (
    check_certificate,
    check_gradient,
    check_optimum_proved,
    check_status_honest,
)

ORDERS = ("source", "target", "both", "neither")


def check_runs(solver: TransportSolver) -> None:
    """A square problem gives a plan of its shape and the fields of a solution."""
    problem = instance(solver)
    solution = solver.solve(problem)
    require(isinstance(solution, TransportSolution), f"solve returned {type(solution).__name__}")
    require(solution.plan.shape == problem.cost.shape, f"the plan has shape {list(solution.plan.shape)}")
    require(solution.plan.device == problem.cost.device, "the plan is on another device than the cost")
    require(solution.problem is problem, "solution.problem is not the problem that was given")
    require(
        len(solution.ended) == 2 and all(isinstance(s, Status) for s in solution.ended),
        "one Status per problem",
    )
    require(solution.order in ORDERS, f"order {solution.order!r} is none of {', '.join(ORDERS)}")
    require(solution.solver == solver.name, f"solution.solver is {solution.solver!r}, not {solver.name!r}")


def check_stats(solver: TransportSolver) -> None:
    """Rounds are counted per problem and seconds are a plausible time."""
    solution = solver.solve(instance(solver))
    rounds = solution.rounds
    require(
        rounds is not None and rounds.shape == (2,) and rounds.dtype == torch.int64,
        "rounds must be [B] int64",
    )
    require((rounds >= 0).all(), "rounds are negative")  # type: ignore[union-attr, operator]
    require(0 < solution.seconds < 600, f"seconds is {solution.seconds}; measure with time.perf_counter()")
    if solution.f is not None and solution.g is not None:
        shapes = list(solution.f.shape), list(solution.g.shape)
        require(shapes == ([2, 12], [2, 12]), f"potentials have shapes {shapes}, not [B,N] and [B,M]")


def check_marginals(solver: TransportSolver) -> None:
    """Unequal marginals are met as status and order promise, on easy and on hard costs."""
    for family in ("random", "offset", "clustered"):
        problem = instance(solver, family)
        marginals_hold(solver, problem, solution=solver.solve(problem))


def check_rectangular(solver: TransportSolver) -> None:
    """More sources than targets and the other way round."""
    for rows, cols in ((9, 14), (14, 9)):
        problem = instance(solver, rows=rows, cols=cols)
        marginals_hold(solver, problem, solution=solver.solve(problem))


def check_gap(solver: TransportSolver) -> None:
    """The rounded plan costs at most the declared accuracy more than the optimum of a linear program."""
    for family, seed in (("random", 1), ("clustered", 2), ("ties", 3)):
        problem = instance(solver, family, seed=seed)
        worst = worst_excess(solver, problem)
        require(
            -1e-6 <= worst <= accuracy(solver),
            f"costs {worst:.2g} of the cost range above the optimum on a {family} instance, declared "
            f"{accuracy(solver):.2g}: cost unread or changed (abs, clamp), epsilon too large, too few rounds",
        )


def check_offset(solver: TransportSolver) -> None:
    """A range of 1e-3 on an offset of 10: nothing is lost to rounding, underflow, or an unscaled epsilon."""
    problem = instance(solver, "offset", seed=4)
    worst = worst_excess(solver, problem)
    require(
        worst <= accuracy(solver),
        f"costs {worst:.2g} of the range above the optimum, declared {accuracy(solver):.2g}: half precision, "
        "exp(-cost / epsilon) without subtracting the minimum, or an epsilon that ignores the cost range",
    )


def check_permutation(solver: TransportSolver) -> None:
    """Permuting sources and targets permutes the plan."""
    problem = instance(solver, seed=6)
    p, q = cases.shuffle(12, 0), cases.shuffle(12, 1)
    moved = TransportProblem.build(problem.cost[:, p][:, :, q], a=problem.a[:, p], b=problem.b[:, q])
    plan, other = solver.solve(problem).plan[:, p][:, :, q], solver.solve(moved).plan
    difference = float((plan - other).abs().amax())
    require(
        difference < 1e-4,
        f"permuting the atoms moves mass by {difference:.2g}: something depends on the index",
    )


def check_shift(solver: TransportSolver) -> None:
    """Adding 50 to every cost changes nothing."""
    problem = instance(solver, seed=7)
    shifted = TransportProblem.build(problem.cost + 50, a=problem.a, b=problem.b)
    difference = float((solver.solve(problem).plan - solver.solve(shifted).plan).abs().amax())
    require(
        difference < 1e-4,
        f"adding a constant to the cost moves mass by {difference:.2g}: the sign of the cost is used, or "
        "exp(-cost / epsilon) underflows; subtract the minimum first",
    )


def check_potential_shift(solver: TransportSolver) -> None:
    """Adding `u_i + v_j` to the cost leaves the optimum where it is, within the declared accuracy."""
    problem = instance(solver, seed=7)
    g = torch.Generator().manual_seed(1)
    u, v = torch.rand(2, 12, 1, generator=g).double(), torch.rand(2, 1, 12, generator=g).double()
    shifted = TransportProblem.build(problem.cost + u + v, a=problem.a, b=problem.b)
    worst = worst_excess(solver, shifted)
    require(
        worst <= accuracy(solver),
        f"after adding u_i + v_j to the cost the plan is {worst:.2g} of the range off",
    )


def check_scale(solver: TransportSolver) -> None:
    """Multiplying the cost by anything from 1e-12 to 1e12 changes nothing."""
    problem = instance(solver, seed=8)
    plan = solver.solve(problem).plan
    for factor in (100.0, 0.01, 1e12, 1e-12):
        scaled = TransportProblem.build(problem.cost * factor, a=problem.a, b=problem.b)
        difference = float((plan - solver.solve(scaled).plan).abs().amax())
        require(
            difference < 1e-4,
            f"multiplying the cost by {factor:g} moves mass by {difference:.2g}: tie epsilon, step sizes and "
            "the tolerances of a library to the cost range",
        )


def check_transpose(solver: TransportSolver) -> None:
    """Exchanging sources and targets gives the same cost."""
    problem = instance(solver, seed=9, rows=12, cols=10)
    turned = TransportProblem.build(problem.cost.transpose(1, 2), a=problem.b, b=problem.a)
    difference = (solver.solve(problem).value - solver.solve(turned).value).abs() / problem.cost_range()
    require(
        float(difference.amax()) < max(1e-6, 0.02 * accuracy(solver)),
        f"exchanging sources and targets changes the cost by {float(difference.amax()):.2g} of the range: "
        "one side is not converged or not used",
    )


def check_inputs_pure(solver: TransportSolver) -> None:
    """Cost and marginals are unchanged, and two calls agree bit for bit."""
    problem = instance(solver)
    require_pure(lambda: solver.solve(problem).plan, tensors_in(problem))


def check_global_rng(solver: TransportSolver) -> None:
    """The global random generators are neither used nor moved."""
    problem = instance(solver)
    require_own_generator(lambda: solver.solve(problem).plan)


def check_batch(solver: TransportSolver) -> None:
    """A problem gives in a batch, next to padding, what it gives alone."""
    sizes = (12, 9, 1)
    ragged, singles = cases.ragged(instance(solver, batch=3, rows=12, cols=12, seed=10), sizes)
    together = solver.solve(ragged)
    for i, n in enumerate(sizes):
        solution = solver.solve(singles[i])
        difference = float((together.plan[i, :n, :n] - solution.plan[0]).abs().amax())
        require(
            difference < 1e-5, f"problem {i} of a ragged batch differs from itself alone by {difference:.2g}"
        )
        outside = together.plan[i].clone()
        outside[:n, :n] = 0
        require(float(outside.abs().amax()) == 0, "mass at padding; mask the plan")
        value = abs(float(together.value[i] - solution.value[0]))
        require(value < 1e-5, f"the value of problem {i} in a ragged batch is off by {value:.2g}")


def check_degenerate(solver: TransportSolver) -> None:
    """Constant cost, ties, atoms without mass, one source, one target and 1 x 1 give finite plans."""
    for family, rows, cols in (
        ("ties", 8, 8),
        ("zero_mass", 8, 8),
        ("random", 1, 6),
        ("random", 6, 1),
        ("random", 1, 1),
    ):
        problem = instance(solver, family, rows=rows, cols=cols)
        marginals_hold(solver, problem, solution=solver.solve(problem))
    flat = instance(solver)
    flat = replace(flat, cost=torch.full_like(flat.cost, 0.3))
    marginals_hold(solver, flat, solution=solver.solve(flat))


def check_dtype(solver: TransportSolver) -> None:
    """float32 cost gives a plan of float32 or better that agrees with float64; half precision is promoted."""
    exact = instance(solver, seed=11)
    reference = solver.solve(exact).value
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.02)):
        problem = TransportProblem.build(exact.cost.to(dtype), a=exact.a.float(), b=exact.b.float())
        solution = solver.solve(problem)
        good = solution.plan.is_floating_point() and solution.plan.dtype.itemsize >= 4
        require(good, f"the plan is {solution.plan.dtype} for {dtype} cost")
        difference = float((solution.value - reference).abs().amax() / exact.cost_range().amax())
        require(difference < tolerance, f"{dtype} cost changes the value by {difference:.2g} of the range")


def check_smaller_epsilon_is_closer(solver: TransportSolver) -> None:
    """A smaller epsilon never raises the excess over the optimum."""
    problem = instance(solver, "clustered", seed=12)
    more = {"rounds": 2000} if "rounds" in type(solver).__dataclass_fields__ else {}
    last = torch.inf
    for epsilon in (0.3, 0.1, 0.04):
        part = changed(solver, epsilon=epsilon, **more)
        worst = worst_excess(part, problem)
        require(
            worst <= last + 1e-4,
            f"epsilon {epsilon} is {worst:.2g} above the optimum, a larger one {last:.2g}",
        )
        last = worst


def check_warm_start(solver: TransportSolver) -> None:
    """Starting from the answer gives the same value, and a start of the wrong shape is refused."""
    problem = instance(solver, seed=13)
    first = solver.solve(problem)
    start = (first.f, first.g)
    again = solver.solve(problem, start=start)  # type: ignore[call-arg]
    difference = float((first.value - again.value).abs().amax() / problem.cost_range().amax())
    require(
        difference < 1e-3, f"a warm start from the answer moves the value by {difference:.2g} of the range"
    )
    if getattr(solver, "tolerance", 0) is None:
        part = changed(solver, tolerance=1e-4)
        cold, warm = part.solve(problem), part.solve(problem, start=start)  # type: ignore[call-arg]
        faster = bool((warm.rounds <= cold.rounds).all())  # type: ignore[operator]
        require(faster, "a warm start from the answer takes more rounds than a cold one; is `start` used?")
    try:
        solver.solve(problem, start=(first.f[:, :-1], first.g))  # type: ignore[index, call-arg]
    except ProblemError:
        return
    require(False, "a warm start of the wrong shape was accepted")


def transport_checks(solver: TransportSolver) -> Iterator[Check]:
    """Checks of a transport solver, according to its tags."""
    tags, parameters = solver.tags, type(solver).__dataclass_fields__
    seeing = "cost_blind" not in tags
    optimal = seeing and "relaxed" not in tags
    yield from part_checks(solver)
    applies = {
        check_runs: True,
        check_stats: True,
        check_marginals: True,
        check_shift: True,
        check_scale: True,
        check_inputs_pure: True,
        check_global_rng: True,
        check_batch: True,
        check_degenerate: True,
        check_dtype: True,
        check_status_honest: True,
        check_gradient: True,
        check_optimum_proved: "exact" in tags,
        check_rectangular: "uniform_square" not in tags,
        check_permutation: seeing and "uses_order" not in tags,
        check_gap: optimal,
        check_offset: optimal,
        check_potential_shift: optimal,
        check_transpose: optimal and not tags & {"uniform_square", "uses_order"},
        check_certificate: optimal and getattr(solver, "certified", True),
        check_smaller_epsilon_is_closer: optimal and "epsilon" in parameters,
        check_warm_start: getattr(solver, "warm", False),
    }
    yield from checks_that(applies)
