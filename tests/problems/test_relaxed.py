"""Relaxed transport problems: bounds below and values above an optimum that other means find."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import ot
import pytest
import torch
from relaxed_cases import divergence, many, served_by_the_best, unbalanced_optimum

import pruneopt
from pruneopt.errors import ProblemError
from pruneopt.parts.solvers.k_sources import KSources as KSourcesSolver
from pruneopt.parts.solvers.partial import Partial as PartialSolver
from pruneopt.parts.solvers.unbalanced import Unbalanced as UnbalancedSolver
from pruneopt.problems.certificate import certify
from pruneopt.problems.relaxed import partial, unbalanced
from pruneopt.problems.relaxed.partial import Partial
from pruneopt.problems.relaxed.unbalanced import Unbalanced
from pruneopt.problems.solution import Status
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

BATCH = 1500


def junk(problem: TransportProblem, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A plan and a potential that no solver would return, in the unit of the cost."""
    gen = torch.Generator().manual_seed(seed)
    plan = torch.rand(problem.cost.shape, generator=gen, dtype=torch.float64) * problem.pair_mask
    plan = plan * (problem.a > 0)[:, :, None] * (problem.b > 0)[:, None, :]
    g = torch.randn(problem.b.shape, generator=gen, dtype=torch.float64) * problem.cost_range()[:, None]
    return plan * torch.rand(len(plan), 1, 1, generator=gen, dtype=torch.float64), g


def in_order(found: Any, best: torch.Tensor, unit: torch.Tensor) -> None:
    slack = 1e-9 * unit
    assert bool((found.lower_bound <= best + slack).all()), "a bound above the optimum"
    assert bool((found.value >= best - slack).all()), "a value below the optimum"


def partial_certificates_are_in_order() -> None:
    for seed, mass in enumerate((0.2, 0.75, 1.0)):
        problem = many(seed, BATCH)
        solution = PartialSolver(mass=mass).solve(problem)
        assert set(solution.status) == {Status.OPTIMAL}
        unit = problem.cost_range()
        assert bool((solution.gap <= 1e-9 * unit).all())
        assert torch.allclose(solution.plan.sum((1, 2)), torch.full((BATCH,), mass).double(), atol=1e-12)
        plan, g = junk(problem, seed)
        in_order(Partial(mass).certify(problem, plan, g=g), solution.value, unit)


def partial_is_what_pot_finds() -> None:
    problem = many(7, 40)
    for mass in (0.3, 0.9):
        found = PartialSolver(mass=mass).solve(problem)
        for i in range(40):
            rows, cols = problem.a[i] > 0, problem.b[i] > 0
            cost = problem.cost[i][rows][:, cols]
            low, width = float(cost.min()), float(np.ptp(cost.numpy())) or 1.0
            scaled = ((cost - low) / width).numpy()
            a, b = problem.a[i][rows].numpy(), problem.b[i][cols].numpy()
            plan = ot.partial.partial_wasserstein(a / a.sum(), b / b.sum(), scaled, m=mass)
            best = low * mass + width * float((plan * scaled).sum())
            assert float(found.value[i]) == pytest.approx(best, abs=1e-9 * max(width, abs(low)))


def unbalanced_certificates_are_in_order() -> None:
    problem = many(3, 600)
    unit = problem.cost_range()
    for share in (0.05, 0.5, 5.0):
        reach = share * unit
        stated = Unbalanced(reach, reach)
        best, g = unbalanced_optimum(problem, reach)
        plan, wild = junk(problem, 1)
        found = stated.certify(problem, plan, g=wild)
        assert bool((found.lower_bound <= best + 1e-9 * unit).all()), "a bound above the optimum"
        tight = stated.certify(problem, plan, g=g).lower_bound
        assert bool((found.value >= tight - 1e-9 * unit).all()), "a value below the optimum"
        assert bool((best - tight <= 2e-3 * unit).all())  # majorisation converges slowly
        solved = UnbalancedSolver(epsilon=0.002, reach=share, rounds=2000).solve(problem)
        assert bool((solved.lower_bound <= best + 1e-9 * unit).all())
        assert bool((solved.value >= tight - 1e-9 * unit).all())
        assert bool((solved.gap <= 0.01 * unit).all())


def unbalanced_is_what_pot_finds() -> None:
    """The entropic plan is POT's at the same epsilon; the bound is below what L-BFGS-B finds without one."""
    gen = torch.Generator().manual_seed(5)
    cost = torch.rand(2, 9, 7, generator=gen, dtype=torch.float64)
    a, b = (torch.rand(2, n, generator=gen, dtype=torch.float64) for n in (9, 7))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    problem = TransportProblem.build(cost, a=a, b=b)
    shifted = cost - cost.amin((1, 2), keepdim=True)
    for soft in ("both", "source"):
        found = UnbalancedSolver(epsilon=0.05, reach=0.4, soft=soft, rounds=400).solve(problem)
        for i in range(2):
            width = float(problem.cost_range()[i])
            r, args = 0.4 * width, (a[i].numpy(), b[i].numpy(), shifted[i].numpy())
            reg_m = r if soft == "both" else (r, math.inf)
            plan = ot.unbalanced.sinkhorn_unbalanced(
                *args, reg=0.05 * width, reg_m=reg_m, method="sinkhorn", reg_type="kl", numItermax=5000,
                stopThr=1e-14,
            )  # fmt: skip
            np.testing.assert_allclose(found.plan[i].numpy(), plan, atol=1e-9)
            if soft == "both":
                exact = torch.from_numpy(
                    ot.unbalanced.lbfgsb_unbalanced(*args, reg=0, reg_m=r, reg_div="kl", numItermax=3000)
                )[None]
                best = float((exact[0] * shifted[i]).sum())
                best += r * float(
                    divergence(exact.sum(2), a[i : i + 1]) + divergence(exact.sum(1), b[i : i + 1])
                )
                assert float(found.lower_bound[i]) <= best + 1e-9 <= float(found.value[i]) + 2e-9


def k_sources_is_the_best_choice() -> None:
    for by in ("lazy_greedy", "brute_force"):
        problem = many(11, 300)
        best = served_by_the_best(problem, k=2)
        found = KSourcesSolver.from_spec({"keep": 2, "by": by}).solve(problem)
        unit = problem.cost_range()
        in_order(found, best, unit)
        assert bool(((found.plan.sum(2) > 0).sum(1) <= 2).all())
        assert torch.allclose(found.plan.sum(1), problem.b, atol=1e-15)
        if by == "brute_force":
            assert torch.allclose(found.value / unit, best / unit, atol=1e-9)
            assert set(found.status) == {Status.OPTIMAL}


def k_sources_agrees_with_facility_location() -> None:
    """The same choice, value and bound as the subset kind states over the same cost."""
    gen = torch.Generator().manual_seed(2)
    cost = torch.rand(3, 8, 8, generator=gen, dtype=torch.float64)
    subset = pruneopt.SubsetProblem.build("facility_location", 3, pairwise=-cost.transpose(1, 2) / 8)
    for by in ("lazy_greedy", "local_search", "milp"):
        kept = registry("solvers").get(by)().solve(subset)
        found = pruneopt.solve("k_sources", cost, keep=3, by=by)
        assert torch.equal(found.plan.sum(2) > 0, kept.keep & (found.plan.sum(2) > 0))
        assert torch.allclose(found.value, -kept.value, atol=1e-12)
        assert torch.allclose(found.lower_bound, -kept.upper_bound, atol=1e-3)
        assert bool((found.lower_bound <= -kept.value + 1e-12).all())


GUARDS: dict[str, Callable[[], None]] = {
    guard.__name__: guard
    for guard in (
        partial_certificates_are_in_order, partial_is_what_pot_finds, unbalanced_certificates_are_in_order,
        unbalanced_is_what_pot_finds, k_sources_is_the_best_choice, k_sources_agrees_with_facility_location,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", GUARDS)
def test_relaxed_problems(name: str) -> None:
    assert GUARDS[name]() is None


Bug = Callable[[], AbstractContextManager[Any]]
patch = mock.patch.object


def wrong_axis() -> AbstractContextManager[Any]:
    """The c-transform goes over the other axis wherever that has the same size."""
    real = partial.c_transform

    def turned(cost: Any, g: Any, *, real: Any, rows: bool, call: Any = real) -> Any:
        return call(cost, g, real=real, rows=rows).flip(1)

    return patch(partial, "c_transform", turned)


def mass_off_by_one_atom() -> AbstractContextManager[Any]:
    """The level is the quantile one atom further."""
    real = Partial._prices

    def late(self: Any, *args: Any, **how: Any) -> Any:
        prices, level = real(self, *args, **how)
        return prices, level * 1.01 + 0.01 * prices.amax(1)

    return patch(Partial, "_prices", late)


def no_rounding() -> AbstractContextManager[Any]:
    return patch(Partial, "rounded", lambda self, plan, a, *, b: plan)


def forgets_a_source() -> AbstractContextManager[Any]:
    """The bound of unbalanced transport is minimised over all sources but the last."""
    real = unbalanced.c_transform

    def short(cost: Any, g: Any, **how: Any) -> Any:
        if not how["rows"]:
            g = g.clone()
            g[:, -1] = -math.inf
        return real(cost, g, **how)

    return patch(unbalanced, "c_transform", short)


def no_mass_term() -> AbstractContextManager[Any]:
    """KL of unequal masses without `- p + q`."""
    return patch(unbalanced, "_divergence", lambda p, q: (torch.xlogy(p, p / q.clamp_min(1e-300))).sum(1))


def wrong_shift() -> AbstractContextManager[Any]:
    """Only one potential is shifted."""
    real = unbalanced._dual
    return patch(unbalanced, "_dual", lambda *args, reach, shift: real(*args, reach=reach, shift=shift.abs()))


def balanced_bound() -> AbstractContextManager[Any]:
    """A relaxed answer is compared with the balanced optimum."""
    return patch(Partial, "certify", lambda self, problem, plan, *, g: certify(problem, plan, g=g))


PLANTED: dict[str, tuple[str, Bug]] = {
    bug.__name__: (guard, bug)
    for guard, bug in (
        ("partial_certificates_are_in_order", wrong_axis),
        ("partial_certificates_are_in_order", mass_off_by_one_atom),
        ("partial_certificates_are_in_order", no_rounding),
        ("partial_certificates_are_in_order", balanced_bound),
        ("unbalanced_certificates_are_in_order", forgets_a_source),
        ("unbalanced_certificates_are_in_order", no_mass_term),
        ("unbalanced_certificates_are_in_order", wrong_shift),
    )
}


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_bug_is_noticed(name: str) -> None:
    guard, bug = PLANTED[name]
    with bug(), pytest.raises(AssertionError):
        GUARDS[guard]()


def test_a_relaxed_value_has_no_gradient_of_the_balanced_one() -> None:
    cost = torch.rand(
        1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    found = pruneopt.solve("partial", cost, mass=0.5)
    with pytest.raises(ProblemError, match="partial has no gradient of `value`"):
        found.value.sum().backward()
