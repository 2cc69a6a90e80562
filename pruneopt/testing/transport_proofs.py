"""Checks of what a transport solver claims: certificates, statuses and gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.errors import ProblemError, PruneoptError
from pruneopt.parts import TransportSolver
from pruneopt.problems.solution import Status
from pruneopt.problems.transport import TransportProblem
from pruneopt.testing.core import changed, require
from pruneopt.testing.transport_instances import accuracy, excess, instance


def check_certificate(solver: TransportSolver) -> None:
    """The certified gap is never negative, bounds the true excess, and is as small as declared."""
    for family in ("random", "clustered"):
        problem = instance(solver, family, seed=5)
        solution = solver.solve(problem)
        span = problem.cost_range().double()
        gap, true = solution.gap / span, excess(problem, solution)
        require(
            (gap >= true - 1e-6).all(), "the certified gap is below the true excess: lower_bound is no bound"
        )
        allowed = 5 * float(true.amax().clamp_min(0)) + 0.2 * accuracy(solver) + 1e-6
        require(
            float(gap.amax()) <= allowed,
            f"the certified gap is {float(gap.amax()):.2g} of the range although the plan is "
            f"{float(true.amax()):.2g} above the optimum: `g` has the wrong sign or unit (cost units, "
            "f + g <= cost), or is missing",
        )


def check_optimum_proved(solver: TransportSolver) -> None:
    """A solver that calls itself exact is confirmed by its certificate, whatever the unit of the cost."""
    for family, factor in (("random", 1.0), ("clustered", 1e-9), ("ties", 1e9), ("zero_mass", 1.0)):
        problem = instance(solver, family, seed=15)
        problem = replace(problem, cost=problem.cost * factor)
        status = solver.solve(problem).status
        require(
            all(s.proved for s in status),
            f"status {status[0].name} on a {family} instance with costs times {factor:g}: the gap is wide, "
            "so the plan is not optimal or the potentials do not prove it",
        )


def check_gradient(solver: TransportSolver) -> None:
    """Gradients of value and plan in cost and marginals agree with finite differences, or refuse by name."""
    problem = instance(solver, seed=14, rows=8, cols=8)
    inputs = tuple(x.clone().requires_grad_() for x in problem.inputs)
    g = torch.Generator().manual_seed(0)
    weights = {
        "value": torch.randn(2, generator=g).double(),
        "plan": torch.randn(2, 8, 8, generator=g).double(),
    }
    moves = [torch.randn(x.shape, generator=g).double() for x in problem.inputs]
    moves[1:] = [(m - m.mean(1, keepdim=True)) / 20 for m in moves[1:]]  # mass is kept
    sides = range(1 if "uniform_square" in solver.tags else 3)
    solution = solver.solve(TransportProblem.build(inputs[0], a=inputs[1], b=inputs[2]))
    for name, weight in weights.items():
        try:
            read = (getattr(solution, name).double() * weight).sum()
            grads = torch.autograd.grad(read, inputs, retain_graph=True, allow_unused=True)
        except PruneoptError:
            continue

        def at(side: int, step: float, *, name: str = name, weight: Tensor = weight) -> Tensor:
            cost, a, b = (x + step * moves[i] if i == side else x for i, x in enumerate(problem.inputs))
            moved = solver.solve(TransportProblem.build(cost, a=a, b=b))
            return (getattr(moved, name).double() * weight).sum()

        for side in sides:
            grad = grads[side]
            along = 0.0 if grad is None else float((grad * moves[side]).sum())
            slope = float(at(side, 1e-4) - at(side, -1e-4)) / 2e-4
            require(
                abs(along - slope) <= 0.05 * abs(slope) + 1e-3,
                f"the gradient of `{name}` in {('cost', 'a', 'b')[side]} is {along:.3g} along a direction in "
                f"which it changes by {slope:.3g}; solve `problem.detached()` if autograd cannot follow",
            )


def check_status_honest(solver: TransportSolver) -> None:
    """One round never claims success, and a result that is not finite is never a usable one."""
    fields = set(type(solver).__dataclass_fields__)
    if "rounds" in fields and "exact" not in solver.tags:
        few = {"rounds": 1} | {name: 1 for name in ("inner", "steps", "warmup") if name in fields}
        if "tolerance" in fields:
            few["tolerance"] = 1e-12  # type: ignore[assignment]
        once = changed(solver, **few).solve(instance(solver, "clustered"))
        claimed = [s.name for s in once.status if s in (Status.CONVERGED, Status.OPTIMAL)]
        require(
            not claimed, f"one round claims {claimed[:1]}; test convergence on the marginals after the round"
        )
    problem = instance(solver)
    cost = problem.cost.clone()
    cost[1, 2, 3] = torch.nan
    broken = TransportProblem.build(cost, a=problem.a, b=problem.b, check=False)
    try:
        solution = solver.solve(broken)
    except ProblemError:
        return
    require(
        not solution.status[1].ok,
        f"NaN in the cost gives status {solution.status[1].name}; report NON_FINITE",
    )
    require(solution.status[0].ok, "NaN in one problem spoils its batch mate")
