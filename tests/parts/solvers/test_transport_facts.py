"""Nineteen analytical facts about transport, each on its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.stats import wasserstein_distance
from transport_cases import FAST_SEEDS, entropy, random_problem, reference_sinkhorn

import pruneopt

CONVERGED = {"epsilon_scale": "absolute", "rounds": 20_000, "tolerance": 1e-12}


def cost_of(solution: pruneopt.Solution) -> torch.Tensor:
    """`[B]` cost of the plan as returned, before rounding."""
    return (solution.plan * solution.problem.cost).sum((1, 2))


def test_fact_01_square_uniform_optimum_is_a_permutation() -> None:
    cost, _, _ = random_problem(1, batch=3, n=12, m=12)
    emd, lsa = pruneopt.solve("emd", cost), pruneopt.solve("assignment", cost)
    torch.testing.assert_close(emd.value, lsa.value, rtol=0, atol=1e-15)
    for plan in emd.plan:
        nonzero = plan[plan > 0]
        assert len(nonzero) == 12
        torch.testing.assert_close(nonzero, torch.full_like(nonzero, 1 / 12))


@given(FAST_SEEDS)
def test_fact_02_basic_optimum_is_sparse(seed: int) -> None:
    cost, a, b = random_problem(seed, n=11, m=8)
    plan = pruneopt.solve("emd", cost, a=a, b=b).plan
    assert int((plan > 0).sum((1, 2)).max()) <= 11 + 8 - 1


@given(FAST_SEEDS)
def test_fact_03_one_sided_costs_only_shift_the_duals(seed: int) -> None:
    cost, a, b = random_problem(seed)
    gen = torch.Generator().manual_seed(seed)
    r = torch.randn(a.shape, generator=gen, dtype=torch.float64)
    c = torch.randn(b.shape, generator=gen, dtype=torch.float64)
    moved = cost + r[:, :, None] + c[:, None, :]
    emd, emd_moved = pruneopt.solve("emd", cost, a=a, b=b), pruneopt.solve("emd", moved, a=a, b=b)
    extra = (r * a).sum(1) + (c * b).sum(1)
    torch.testing.assert_close(emd_moved.value, emd.value + extra, rtol=0, atol=1e-12)
    plain = pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=0.1, **CONVERGED)
    both = pruneopt.solve("sinkhorn", moved, a=a, b=b, epsilon=0.1, **CONVERGED)
    torch.testing.assert_close(both.plan, plain.plan, rtol=0, atol=1e-10)
    shift = both.f - plain.f - r
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-9)
    for order, side in (("target_then_source", c[:, None, :]), ("source_then_target", r[:, :, None])):
        how = {"epsilon": 0.1, "epsilon_scale": "absolute", "rounds": 2, "order": order}
        first = pruneopt.solve("sinkhorn", cost, a=a, b=b, **how)
        again = pruneopt.solve("sinkhorn", cost + side, a=a, b=b, **how)
        torch.testing.assert_close(again.plan, first.plan, rtol=0, atol=1e-13)


@given(FAST_SEEDS)
def test_fact_04_row_exact_plan_has_row_sums_a_for_any_cost(seed: int) -> None:
    cost, a, b = random_problem(seed)
    for eps in (1.0, 0.05, 0.002):
        for rounds in (1, 3, 40):
            plan = pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=eps, rounds=rounds).plan
            torch.testing.assert_close(plan.sum(2), a, rtol=1e-12, atol=0)
            plan = pruneopt.solve(
                "sinkhorn", cost, a=a, b=b, epsilon=eps, rounds=rounds, order="source_then_target"
            ).plan
            torch.testing.assert_close(plan.sum(1), b, rtol=1e-12, atol=0)


@given(FAST_SEEDS)
def test_fact_05_scaling_cost_and_epsilon_together_changes_nothing(seed: int) -> None:
    cost, a, b = random_problem(seed)
    for t in (1e-3, 7.0, 1e3):
        for name, how in (("sinkhorn", {"rounds": 5}), ("one_sided", {}), ("sinkhorn_newton", {})):
            one = pruneopt.solve(name, cost, a=a, b=b, epsilon=0.1, epsilon_scale="absolute", **how)
            two = pruneopt.solve(name, cost * t, a=a, b=b, epsilon=0.1 * t, epsilon_scale="absolute", **how)
            rel = pruneopt.solve(name, cost * t, a=a, b=b, epsilon=0.1, **how)
            base = pruneopt.solve(name, cost, a=a, b=b, epsilon=0.1, **how)
            torch.testing.assert_close(two.plan, one.plan, rtol=1e-9, atol=1e-15)
            torch.testing.assert_close(rel.plan, base.plan, rtol=1e-9, atol=1e-15)
        prox = pruneopt.solve("proximal", cost * t, a=a, b=b, rounds=20).plan
        torch.testing.assert_close(prox, pruneopt.solve("proximal", cost, a=a, b=b, rounds=20).plan)
        torch.testing.assert_close(
            pruneopt.solve("emd", cost * t, a=a, b=b).value, pruneopt.solve("emd", cost, a=a, b=b).value * t
        )


@pytest.mark.parametrize("eps", [1.0, 0.3, 0.1, 0.03, 0.01])
def test_fact_06_entropic_bias_is_bounded_by_entropy(eps: float) -> None:
    cost, a, b = random_problem(6, batch=4)
    exact = pruneopt.solve("emd", cost, a=a, b=b).value
    bias = cost_of(pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=eps, **CONVERGED)) - exact
    assert (bias >= -1e-11).all()
    assert (bias <= eps * torch.minimum(entropy(a), entropy(b)) + 1e-11).all()


def test_fact_07_cost_grows_with_epsilon_up_to_the_independent_coupling() -> None:
    cost, a, b = random_problem(7, batch=4)
    ladder = [
        cost_of(pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=e, **CONVERGED))
        for e in (0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0)
    ]
    for low, high in pairwise(ladder):
        assert (high > low).all()
    far = pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=1e7, **CONVERGED).plan
    torch.testing.assert_close(far, a[:, :, None] * b[:, None, :], rtol=1e-5, atol=1e-9)


@given(FAST_SEEDS)
def test_fact_08_strong_duality_and_complementary_slackness(seed: int) -> None:
    cost, a, b = random_problem(seed)
    for name, how in (("emd", {}), ("lp", {"route": "direct"}), ("exact", {})):
        s = pruneopt.solve(name, cost, a=a, b=b, **how)
        assert s.f is not None and s.g is not None
        reduced = cost - s.f[:, :, None] - s.g[:, None, :]
        assert float(reduced.min()) > -1e-12
        assert float(reduced[s.plan > 1e-12].abs().max()) < 1e-12
        dual = (a * s.f).sum(1) + (b * s.g).sum(1)
        torch.testing.assert_close(dual, s.value, rtol=0, atol=1e-12)
        assert (s.gap.abs() < 1e-12).all()


def test_fact_09_on_a_line_the_sorted_coupling_is_optimal() -> None:
    gen = torch.Generator().manual_seed(9)
    x, y = (torch.randn(k, generator=gen, dtype=torch.float64).sort().values for k in (15, 11))
    a, b = (torch.rand(k, generator=gen, dtype=torch.float64) for k in (15, 11))
    a, b = a / a.sum(), b / b.sum()
    for power in (1.0, 1.5, 2.0, 4.0):
        cost = (x[:, None] - y[None, :]).abs().pow(power)[None]
        sorted_value = pruneopt.solve("north_west", cost, a=a[None], b=b[None]).value
        emd = pruneopt.solve("emd", cost, a=a[None], b=b[None]).value
        torch.testing.assert_close(sorted_value, emd, rtol=1e-12, atol=1e-14)
    quantiles = wasserstein_distance(x.numpy(), y.numpy(), a.numpy(), b.numpy())
    w1 = pruneopt.solve("emd", (x[:, None] - y[None, :]).abs()[None], a=a[None], b=b[None]).value
    assert float(w1) == pytest.approx(quantiles, rel=1e-12)


def test_fact_10_translation_of_a_cloud() -> None:
    gen = torch.Generator().manual_seed(10)
    x = torch.randn(14, 3, generator=gen, dtype=torch.float64)
    y = torch.randn(10, 3, generator=gen, dtype=torch.float64)
    shift = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64)
    a, b = torch.rand(14, generator=gen).double(), torch.rand(10, generator=gen).double()
    a, b = a / a.sum(), b / b.sum()

    def w2(p: torch.Tensor, q: torch.Tensor, mass: torch.Tensor) -> float:
        cost = (p[:, None] - q[None]).square().sum(2)[None]
        return float(pruneopt.solve("emd", cost, a=a[None], b=mass[None]).value)

    drift = 2 * shift @ ((b[:, None] * y).sum(0) - (a[:, None] * x).sum(0)) + shift @ shift
    assert w2(x, y + shift, b) == pytest.approx(w2(x, y, b) + float(drift), abs=1e-12)
    assert w2(x, x + shift, a) == pytest.approx(float(shift @ shift), abs=1e-12)


@pytest.mark.parametrize("name", ["emd", "exact", "lp", "proximal"])
def test_fact_11_equal_clouds_stay_where_they_are(name: str) -> None:
    cost, a, _ = random_problem(11, n=8, m=8)
    cost = cost + 0.1
    cost.diagonal(dim1=1, dim2=2).zero_()
    s = pruneopt.solve(name, cost, a=a, b=a, **({"rounds": 2000} if name == "proximal" else {}))
    torch.testing.assert_close(s.plan, torch.diag_embed(a), rtol=0, atol=1e-6)
    assert float(s.value.max()) < 1e-6


def test_fact_12_symmetric_problem_has_a_symmetric_entropic_plan_only_at_convergence() -> None:
    cost, a, _ = random_problem(12, n=8, m=8)
    cost = cost + cost.transpose(1, 2)
    done = pruneopt.solve("sinkhorn", cost, a=a, b=a, epsilon=0.1, **CONVERGED)
    torch.testing.assert_close(done.plan, done.plan.transpose(1, 2), rtol=0, atol=1e-10)
    difference = done.f - done.g
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-8)
    early = pruneopt.solve("sinkhorn", cost, a=a, b=a, epsilon=0.1, epsilon_scale="absolute", rounds=2)
    assert float((early.plan - early.plan.transpose(1, 2)).abs().max()) > 1e-4


@given(FAST_SEEDS)
def test_fact_13_transpose(seed: int) -> None:
    cost, a, b = random_problem(seed)
    flipped = cost.transpose(1, 2)
    for name, how in (
        ("sinkhorn", {"epsilon": 0.1, **CONVERGED}),
        ("sinkhorn_newton", {"epsilon": 0.05}),
        ("emd", {}),
    ):
        one, two = pruneopt.solve(name, cost, a=a, b=b, **how), pruneopt.solve(name, flipped, a=b, b=a, **how)
        torch.testing.assert_close(two.plan.transpose(1, 2), one.plan, rtol=0, atol=1e-8)
    forward = pruneopt.solve("sinkhorn", cost, a=a, b=b, rounds=2)
    back = pruneopt.solve("sinkhorn", flipped, a=b, b=a, rounds=2, order="source_then_target")
    torch.testing.assert_close(back.plan.transpose(1, 2), forward.plan, rtol=1e-12, atol=0)


@given(FAST_SEEDS)
def test_fact_14_relabelling_permutes_the_plan(seed: int) -> None:
    cost, a, b = random_problem(seed)
    gen = torch.Generator().manual_seed(seed)
    rows, cols = torch.randperm(9, generator=gen), torch.randperm(7, generator=gen)
    for name, how in (
        ("sinkhorn", {"rounds": 3}),
        ("one_sided", {}),
        ("proximal", {"rounds": 30}),
        ("sinkhorn_newton", {"epsilon": 0.02}),
        ("emd", {}),
    ):
        one = pruneopt.solve(name, cost, a=a, b=b, **how)
        two = pruneopt.solve(name, cost[:, rows][:, :, cols], a=a[:, rows], b=b[:, cols], **how)
        torch.testing.assert_close(two.plan, one.plan[:, rows][:, :, cols], rtol=0, atol=1e-9)


@given(FAST_SEEDS)
def test_fact_15_splitting_an_atom_keeps_the_cost(seed: int) -> None:
    cost, a, b = random_problem(seed)
    a2 = torch.cat([a[:, :1] * 0.3, a[:, :1] * 0.7, a[:, 1:]], 1)
    cost2 = torch.cat([cost[:, :1], cost], 1)
    for name, how in (("emd", {}), ("sinkhorn", {"epsilon": 0.1, **CONVERGED})):
        one, two = pruneopt.solve(name, cost, a=a, b=b, **how), pruneopt.solve(name, cost2, a=a2, b=b, **how)
        torch.testing.assert_close(two.value, one.value, rtol=0, atol=1e-10)


@given(FAST_SEEDS)
def test_fact_16_two_by_two_has_closed_forms(seed: int) -> None:
    cost, a, b = random_problem(seed, batch=4, n=2, m=2)
    bend = cost[:, 0, 0] + cost[:, 1, 1] - cost[:, 0, 1] - cost[:, 1, 0]
    low = (a[:, 0] + b[:, 0] - 1).clamp_min(0)
    high = torch.minimum(a[:, 0], b[:, 0])
    p00 = torch.where(bend > 0, low, high)
    plan = torch.stack([p00, a[:, 0] - p00, b[:, 0] - p00, 1 - a[:, 0] - b[:, 0] + p00], 1).view(-1, 2, 2)
    best = (plan * cost).sum((1, 2))
    torch.testing.assert_close(pruneopt.solve("emd", cost, a=a, b=b).value, best, rtol=0, atol=1e-12)
    near = pruneopt.solve("proximal", cost, a=a, b=b, rounds=300, tolerance=1e-4).value
    torch.testing.assert_close(near, best, rtol=0, atol=2e-3)
    for order in ("target_then_source", "source_then_target"):
        for rounds in (1, 2, 5, 50):
            p = pruneopt.solve(
                "sinkhorn", cost, a=a, b=b, epsilon=0.2, epsilon_scale="absolute", rounds=rounds, order=order
            ).plan
            odds = (p[:, 0, 0] * p[:, 1, 1]).log() - (p[:, 0, 1] * p[:, 1, 0]).log()
            torch.testing.assert_close(odds, -bend / 0.2, rtol=0, atol=1e-10)


def test_fact_17_rounds_contract_the_hilbert_metric() -> None:
    cost, a, b = random_problem(17, batch=3)
    eps = 0.5
    quad = cost[:, :, None, :, None] + cost[:, None, :, None, :]
    cross = cost[:, :, None, None, :] + cost[:, None, :, :, None]
    diameter = (quad - cross).flatten(1).amax(1) / eps
    rate = torch.tanh(diameter / 4) ** 2
    f = [
        pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=eps, epsilon_scale="absolute", rounds=k).f / eps
        for k in range(1, 7)
    ]
    moves = [(y - x).amax(1) - (y - x).amin(1) for x, y in pairwise(f)]
    for before, after in pairwise(moves):
        assert (after <= rate * before + 1e-13).all()
    assert (moves[0] > 1e-6).all()


@given(FAST_SEEDS)
def test_fact_18_every_half_step_raises_the_dual(seed: int) -> None:
    cost, a, b = random_problem(seed)
    eps = 0.05

    def dual(f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        mass = ((f[:, :, None] + g[:, None, :] - cost) / eps).exp().sum((1, 2))
        return (a * f).sum(1) + (b * g).sum(1) - eps * mass

    states = [
        pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=eps, epsilon_scale="absolute", rounds=k)
        for k in range(1, 6)
    ]
    ladder = [dual(states[0].f, states[0].g)]
    for old, new in pairwise(states):
        # potentials are defined up to a constant that a round may move: align before mixing two rounds
        ladder += [dual(old.f, new.g), dual(new.f, new.g)]
    for low, high in pairwise(ladder):
        assert (high >= low - 1e-12).all()


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.float32, 15.0), (torch.float32, 110.0), (torch.float64, 800.0)]
)
def test_fact_19_costs_beyond_the_underflow_limit_stay_exact(dtype: torch.dtype, ratio: float) -> None:
    cost, a, b = random_problem(19, n=20, m=16)
    cost[:, 0] += 1.0  # a row that is far from everything: its whole kernel row is exp(-large)
    eps = float(cost.max() - cost.min()) / ratio
    naive = (-cost.to(dtype) / eps).exp()
    if ratio > 103:
        assert bool((naive.sum(2) == 0).any()) or bool((naive == 0).any())
    how = {"epsilon": eps, "epsilon_scale": "absolute", "rounds": 60}
    s = pruneopt.solve("sinkhorn", cost.to(dtype), a=a.to(dtype), b=b.to(dtype), **how)
    assert s.status[0].ok and s.dtype == dtype
    for i in range(2):
        want = reference_sinkhorn(cost[i].numpy(), a[i].numpy(), b[i].numpy(), eps, 60)
        np.testing.assert_allclose(s.plan[i].double().numpy(), want, rtol=0, atol=3e-6)
