"""What every transport solver owes its user: agreement, batching, masks, dtypes, honesty."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from transport_cases import FAST_SEEDS, random_problem, reference_sinkhorn

import pruneopt
from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts.solvers import _scaling as scaling
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.solution import Status
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

ALL = (
    "emd", "exact", "lp", "sinkhorn", "one_sided", "proximal", "sinkhorn_newton", "greedy_rows", "north_west",
)  # fmt: skip
SETTINGS: dict[str, dict[str, object]] = {
    "lp": {"route": "direct"},
    "proximal": {"rounds": 60},
    "sinkhorn_newton": {"epsilon": 0.05},
}


def run(name: str, cost: object, a: object = None, b: object = None, **params: object) -> pruneopt.Solution:
    return pruneopt.solve(name, cost, a=a, b=b, **{**SETTINGS.get(name, {}), **params})


# ---------------------------------------------------------------- agreement


@given(FAST_SEEDS)
def test_emd_assignment_and_both_lp_routes_agree(seed: int) -> None:
    cost, _, _ = random_problem(seed, n=8, m=8)
    values = [
        run(name, cost, **how).value
        for name, how in (
            ("emd", {}),
            ("assignment", {}),
            ("exact", {}),
            ("lp", {}),
            ("lp", {"route": "cvxpy"}),
        )
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["CLARABEL", "SCIPY"])
def test_other_cvxpy_solvers_agree(solver: str) -> None:
    cost, a, b = random_problem(3)
    s = run("lp", cost, a, b, route="cvxpy", solver=solver)
    torch.testing.assert_close(s.value, run("emd", cost, a, b).value, rtol=0, atol=1e-6)
    assert all(x in (Status.OPTIMAL, Status.UNPROVED) for x in s.status)


def test_exact_says_which_solver_it_used_for_each_problem() -> None:
    cost, a, b = random_problem(4, n=7, m=7)
    flat = torch.full((7,), 1 / 7, dtype=torch.float64)
    s = run("exact", cost, torch.stack([flat, a[1]]), torch.stack([flat, b[1]]))
    assert [d["method"] for d in s.stats["details"]] == ["assignment", "emd"]


@pytest.mark.parametrize("name", ["sinkhorn", "sinkhorn_newton", "proximal"])
def test_more_effort_comes_closer_to_the_optimum(name: str) -> None:
    cost, a, b = random_problem(5, batch=3, n=20, m=15)
    exact = run("emd", cost, a, b).value
    knobs = {
        "sinkhorn": [{"epsilon": e, "rounds": 4000, "tolerance": 1e-9} for e in (0.2, 0.05, 0.01)],
        "sinkhorn_newton": [{"epsilon": e, "anneal_start": 0.2} for e in (0.1, 0.01, 0.001)],
        "proximal": [{"rounds": r} for r in (5, 50, 1000)],
    }[name]
    excess = [(run(name, cost, a, b, **k).value - exact).max() for k in knobs]
    assert excess[0] > 2 * excess[1] > 4 * excess[2] >= -1e-12
    assert excess[2] < {"sinkhorn": 2e-2, "sinkhorn_newton": 1e-4, "proximal": 1e-3}[name]


def test_proximal_is_not_the_independent_coupling() -> None:
    """POT 0.9.7's batch proximal solver has a sign reversed and returns `a b^T` with exact marginals."""
    cost, a, b = random_problem(6, batch=3, n=12, m=12)
    exact = run("emd", cost, a, b).value
    coupling = (a[:, :, None] * b[:, None, :] * cost).sum((1, 2))
    value = run("proximal", cost, a, b, rounds=500).value
    assert ((value - exact) < 0.02 * (coupling - exact)).all()


# ---------------------------------------------------------------- rounds against an independent witness


@pytest.mark.parametrize("order", ["target_then_source", "source_then_target"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 25])
@pytest.mark.parametrize("eps", [0.3, 0.02, 0.004])
def test_sinkhorn_rounds_match_a_plain_log_domain_loop(order: str, rounds: int, eps: float) -> None:
    cost, a, b = random_problem(7, n=14, m=10)
    s = run("sinkhorn", cost, a, b, epsilon=eps, epsilon_scale="absolute", rounds=rounds, order=order)
    for i in range(2):
        want = reference_sinkhorn(
            cost[i].numpy(), a[i].numpy(), b[i].numpy(), eps, rounds, order == "target_then_source"
        )
        np.testing.assert_allclose(s.plan[i].numpy(), want, rtol=1e-9, atol=1e-15)
    assert s.order == ("source" if order == "target_then_source" else "target")
    assert s.rounds.tolist() == [rounds, rounds]


@pytest.mark.parametrize("eps", [0.2, 0.001])
def test_rounds_that_stay_in_the_log_domain_are_the_same(eps: float) -> None:
    """The road that few rounds take on a GPU."""
    cost, a, b = random_problem(7, n=14, m=10)
    problem = TransportProblem.build(cost, a=a, b=b)
    roads = []
    for road in (partial(scaling.iterate, tolerance=None, first=True), scaling.iterate_blindly):
        state = Sinkhorn._begin(problem, None, flip=False)
        scale = torch.full((2,), eps, dtype=torch.float64)
        road(problem, scale, state=state, rounds=4, omega=1.0)
        roads.append((state.f, state.g, state.rounds))
    for fast, safe in zip(*roads, strict=True):
        torch.testing.assert_close(fast, safe, rtol=1e-10, atol=1e-12)


def test_plan_equals_what_the_potentials_say() -> None:
    cost, a, b = random_problem(8)
    for name in ("sinkhorn", "one_sided", "sinkhorn_newton"):
        s = run(name, cost, a, b, epsilon=0.05)
        eps = s.stats["epsilon"][:, None, None]
        plan = ((s.f[:, :, None] + s.g[:, None, :] - cost) / eps).exp()
        torch.testing.assert_close(plan, s.plan, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("order", ["target_then_source", "source_then_target"])
@pytest.mark.parametrize("eps", [0.02, 0.005, 0.001])
def test_annealing_and_warm_starts_end_at_the_same_plan(order: str, eps: float) -> None:
    """Every way to the fixed point, with the side that was updated last exact all along."""
    cost, a, b = random_problem(9, batch=3, n=30, m=24)
    want = run("sinkhorn_newton", cost, a, b, epsilon=eps, anneal_start=0.2, tolerance=1e-12)
    other = run("sinkhorn", cost, a, b, epsilon=4 * eps, rounds=30, order=order)
    for how in ({"anneal_start": 0.2}, {"start": (other.f, other.g)}, {"anneal_start": 0.3, "omega": 1.3}):
        for rounds in (1, 15, 40):
            s = run("sinkhorn", cost, a, b, epsilon=eps, rounds=rounds, order=order, **how)
            exact = s.row_error if order == "target_then_source" else s.col_error
            assert float(exact.max()) < 1e-12, (how, rounds)
            assert float(s.plan.sum((1, 2)).sub(1).abs().max()) < 1e-12
        s = run("sinkhorn", cost, a, b, epsilon=eps, rounds=30_000, tolerance=1e-9, order=order, **how)
        assert all(x is Status.CONVERGED for x in s.status), how
        torch.testing.assert_close(s.plan, want.plan, rtol=0, atol=1e-7)


def test_over_relaxation_saves_rounds_and_ends_plain() -> None:
    cost, a, b = random_problem(9, n=30, m=30)
    how = {"epsilon": 0.005, "rounds": 20_000, "tolerance": 1e-8}
    plain, fast = run("sinkhorn", cost, a, b, **how), run("sinkhorn", cost, a, b, omega=1.6, **how)
    assert fast.status == plain.status == (Status.CONVERGED,) * 2
    assert (fast.rounds < 0.7 * plain.rounds).all()
    torch.testing.assert_close(fast.plan, plain.plan, rtol=0, atol=1e-7)
    for rounds in (1, 7, 10, 23):
        ends = run("sinkhorn", cost, a, b, epsilon=0.02, rounds=rounds, omega=1.7)
        torch.testing.assert_close(ends.plan.sum(2), a, rtol=1e-10, atol=0)


def test_problems_stop_one_by_one_as_if_alone() -> None:
    easy, a, b = random_problem(10, n=16, m=16)
    cost = torch.cat([easy[:1] * 0.01, easy[1:]])
    how = {"epsilon": 0.01, "epsilon_scale": "absolute", "rounds": 5000, "tolerance": 1e-9}
    both = run("sinkhorn", cost, a, b, **how)
    assert both.rounds[0] < both.rounds[1]
    for i in range(2):
        alone = run("sinkhorn", cost[i : i + 1], a[i : i + 1], b[i : i + 1], **how)
        assert int(alone.rounds) == int(both.rounds[i])
        torch.testing.assert_close(alone.plan[0], both.plan[i], rtol=1e-10, atol=0)


@pytest.mark.parametrize("order", ["target_then_source", "source_then_target"])
def test_warm_start_from_the_answer_ends_at_once(order: str) -> None:
    cost, a, b = random_problem(11, n=16, m=12)
    how = {"epsilon": 0.02, "rounds": 5000, "tolerance": 1e-10, "order": order}
    cold = run("sinkhorn", cost, a, b, **how)
    warm = run("sinkhorn", cost, a, b, start=(cold.f, cold.g), **how)
    assert int(cold.rounds.max()) > 30 and int(warm.rounds.max()) == 2
    torch.testing.assert_close(warm.plan, cold.plan, rtol=0, atol=1e-10)
    with pytest.raises(ProblemError, match="source potential must be"):
        run("sinkhorn", cost, a, b, start=(cold.g, cold.g), **how)
    with pytest.raises(ProblemError, match="target potential is not finite in problem 1"):
        broken = cold.g.clone()
        broken[1, 3] = math.nan
        run("sinkhorn", cost, a, b, start=(cold.f, broken), **how)
    with pytest.raises(ProblemError, match="no warm start"):
        run("emd", cost, a, b, start=(cold.f, cold.g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_epsilon_is_finite_certified_and_close(dtype: torch.dtype) -> None:
    cost, a, b = random_problem(12, batch=2, n=60, m=60, dtype=dtype)
    exact = run("emd", cost, a, b).value
    s = run("sinkhorn", cost, a, b, epsilon=1e-4, rounds=1000, anneal_start=1.0, anneal_rounds=40)
    assert all(x is Status.ROUNDS_DONE for x in s.status)
    excess = s.value - exact
    assert (s.gap >= excess - 1e-9).all() and (s.gap < 5e-3).all() and (excess > -1e-9).all()
    cold = run("sinkhorn", cost, a, b, epsilon=1e-4, rounds=200)
    assert cold.plan.isfinite().all() and (cold.gap > 3 * s.gap).all()


# ---------------------------------------------------------------- batches, masks, padding


@pytest.mark.parametrize("name", [*ALL, "assignment"])
def test_batched_equals_looped(name: str) -> None:
    cost, a, b = random_problem(13, batch=4, n=9, m=9)
    args = (cost,) if name == "assignment" else (cost, a, b)
    whole = run(name, *args)
    for i in range(4):
        alone = run(name, *(x[i : i + 1] for x in args))
        torch.testing.assert_close(alone.plan[0], whole.plan[i], rtol=0, atol=1e-12)
        assert alone.status[0] is whole.status[i]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*ALL, "assignment"])
def test_ragged_with_masks_equals_alone(name: str, dtype: torch.dtype) -> None:
    sizes = [(5, 5), (9, 9), (1, 1)] if name == "assignment" else [(5, 7), (9, 4), (1, 6)]
    rows, cols = max(n for n, _ in sizes), max(m for _, m in sizes)
    cost = torch.full((3, rows, cols), math.nan, dtype=dtype)
    a, b = torch.zeros(3, rows, dtype=dtype), torch.zeros(3, cols, dtype=dtype)
    row_mask, col_mask = torch.zeros(3, rows, dtype=torch.bool), torch.zeros(3, cols, dtype=torch.bool)
    alone = []
    for i, (n, m) in enumerate(sizes):
        c, p, q = random_problem(20 + i, batch=1, n=n, m=m, dtype=dtype)
        c = c + 1000  # padding is zero inside: the range must not see it
        if name == "assignment":
            p, q = torch.full_like(p, 1 / n), torch.full_like(q, 1 / m)
        cost[i, :n, :m], a[i, :n], b[i, :m] = c[0], p[0], q[0]
        row_mask[i, :n], col_mask[i, :m] = True, True
        alone.append(run(name, c, p, q))
    # padding lies in the middle too: order must not matter
    whole = run(name, cost, a, b, mask=(row_mask, col_mask))
    for i, (n, m) in enumerate(sizes):
        torch.testing.assert_close(whole.plan[i, :n, :m], alone[i].plan[0], rtol=2e-4, atol=2e-6)
        assert float(whole.plan[i, n:].sum() + whole.plan[i, :, m:].sum()) == 0
        torch.testing.assert_close(whole.value[i], alone[i].value[0], rtol=0, atol=2e-3)
        assert whole.status[i].ok


def test_padding_values_cannot_leak() -> None:
    cost, a, b = random_problem(14, n=9, m=9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 2] = mask[0, 7] = mask[1, 0] = False
    a, b = a * mask, b * mask
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    pair = mask[:, :, None] & mask[:, None, :]
    for name in ALL:
        plans = [
            run(name, cost.masked_fill(~pair, fill), a, b, mask=mask).plan for fill in (0.0, -1e6, math.nan)
        ]
        torch.testing.assert_close(plans[1], plans[0], rtol=0, atol=0)
        torch.testing.assert_close(plans[2], plans[0], rtol=0, atol=0)
    outer = run("emd", cost, a, b, mask=pair)
    torch.testing.assert_close(outer.plan, run("emd", cost, a, b, mask=mask).plan)


@pytest.mark.parametrize("name", ALL)
def test_atoms_without_mass_change_nothing(name: str) -> None:
    cost, a, b = random_problem(15, n=8, m=6)
    a, b = a.clone(), b.clone()
    a[:, 3] = 0
    b[:, 1] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    s = run(name, cost, a, b)
    rows, cols = [0, 1, 2, 4, 5, 6, 7], [0, 2, 3, 4, 5]
    small = cost[:, rows][:, :, cols]
    params = {}
    if "epsilon" in registry("solvers").get(name).__dataclass_fields__:
        eps = 0.05
        params = {"epsilon": eps, "epsilon_scale": "absolute"}
        s = run(name, cost, a, b, **params)
    t = run(name, small, a[:, rows], b[:, cols], **params)
    atol = 1e-3 if name == "proximal" else 1e-12  # its step is a share of the range, which may differ
    torch.testing.assert_close(s.plan[:, rows][:, :, cols], t.plan, rtol=0, atol=atol)
    assert all(x.ok for x in s.status)
    assert s.gap.isfinite().all() and (s.gap >= -1e-12).all()


@pytest.mark.parametrize("name", [*ALL, "assignment"])
def test_one_by_one(name: str) -> None:
    s = run(name, torch.tensor([[[2.5]], [[-1.0]]]))
    torch.testing.assert_close(s.plan.double(), torch.ones(2, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(s.value, torch.tensor([2.5, -1.0], dtype=torch.float64))
    assert all(x.ok for x in s.status)


# ---------------------------------------------------------------- certificates and feasibility


@given(FAST_SEEDS)
def test_gap_bounds_the_true_excess(seed: int) -> None:
    cost, a, b = random_problem(seed, n=8, m=6)
    cost = cost * 3 - 1
    exact = run("emd", cost, a, b).value
    for name in ALL:
        s = run(name, cost, a, b)
        excess = s.value - exact
        assert (excess >= -1e-12).all(), name
        assert (s.gap >= excess - 1e-12).all(), name
        assert (s.lower_bound <= exact + 1e-12).all(), name
        if s.status[0].proved:
            assert (s.gap < 1e-9).all(), name


@pytest.mark.parametrize("name", [n for n in ALL if n != "one_sided"])
def test_marginals(name: str) -> None:
    cost, a, b = random_problem(16, n=12, m=10)
    s = run(name, cost, a, b)
    assert (s.plan >= 0).all()
    slack = {"sinkhorn": 1e-3, "proximal": 1e-2, "lp": 1e-8}.get(name, 1e-9)
    assert float(s.row_error.max()) < (slack if name == "lp" else 1e-9)
    assert float(s.col_error.max()) < slack


@pytest.mark.parametrize("name", ALL)
def test_ties_zero_costs_and_duplicates(name: str) -> None:
    flat = torch.zeros(1, 6, 6)
    s = run(name, flat)
    assert s.status[0].ok and abs(float(s.value)) < 1e-12 and abs(float(s.gap)) < 1e-9
    block = torch.ones(1, 6, 6)
    block[:, :3, :3] = block[:, 3:, 3:] = 0
    s = run(name, block, **({"rounds": 400} if name == "proximal" else {}))
    assert s.status[0].ok
    if name in ("emd", "exact", "lp", "greedy_rows", "north_west"):
        assert float(s.value) == pytest.approx(0, abs=1e-12)
    again = run(name, block, **({"rounds": 400} if name == "proximal" else {}))
    assert torch.equal(again.plan, s.plan)


def test_near_equal_costs_on_a_large_offset() -> None:
    """An offset of 1e4 with differences of 1e-3: a half-precision cost would see nothing."""
    cost, a, b = random_problem(17, n=10, m=10)
    small = cost * 1e-3
    for name, tolerance in (("emd", 1e-9), ("lp", 1e-6), ("sinkhorn", 0.1), ("proximal", 1e-2)):
        s = run(name, small + 1e4, a, b)
        excess = s.value - 1e4 - run("emd", small, a, b).value
        assert float(excess.abs().max()) < tolerance * 1e-3 + 1e-8, name


# ---------------------------------------------------------------- honesty


def test_one_round_never_claims_convergence() -> None:
    flat = torch.zeros(1, 4, 4)
    assert run("sinkhorn", flat, rounds=1, tolerance=0.5).status[0] is Status.MAX_ROUNDS
    cost, a, b = random_problem(18)
    for tolerance in (1e-12, 1.9, 2.5):
        s = run("sinkhorn", cost, a, b, rounds=1, tolerance=tolerance)
        assert all(x is Status.MAX_ROUNDS for x in s.status)
    assert all(x is Status.ROUNDS_DONE for x in run("sinkhorn", cost, a, b, rounds=1).status)
    assert all(x is Status.MAX_ROUNDS for x in run("sinkhorn", cost, a, b, rounds=300, tolerance=0).status)


def test_converged_means_that_the_marginals_meet_the_tolerance() -> None:
    cost, a, b = random_problem(19, batch=6, n=15, m=15)
    for omega in (1.0, 1.5):
        s = run("sinkhorn", cost, a, b, epsilon=0.003, rounds=60, tolerance=1e-5, omega=omega)
        for i, status in enumerate(s.status):
            assert status is (Status.CONVERGED if float(s.col_error[i]) < 1e-5 else Status.MAX_ROUNDS)


def test_emd_out_of_pivots_says_so() -> None:
    cost, a, b = random_problem(20, n=40, m=40)
    s = run("emd", cost, a, b, rounds=3)
    assert s.status == (Status.MAX_ROUNDS,) * 2
    assert float(s.gap.min()) > 1e-6


def test_lp_time_limit_is_reported() -> None:
    cost, a, b = random_problem(21, batch=1, n=60, m=60)
    s = run("lp", cost, a, b, time_limit=1e-6)
    assert s.status[0] is Status.TIME_LIMIT and "independent coupling" in s.stats["details"][0]["says"]
    assert float(s.gap) > 0


def test_inaccurate_lp_solvers_are_not_believed() -> None:
    cost, a, b = random_problem(22, n=20, m=20)
    s = run("lp", cost, a, b, route="cvxpy", solver="OSQP")
    for status, gap in zip(s.status, s.gap.tolist(), strict=True):
        assert status.proved == (gap <= 1e-9) or gap < 2e-9


@pytest.mark.parametrize("name", [*ALL, "assignment"])
def test_non_finite_input_that_slips_through_is_never_a_success(name: str) -> None:
    cost, a, b = random_problem(23, n=5, m=5)
    if name == "assignment":
        a = b = None
    cost[1, 2, 2] = math.nan
    problem = TransportProblem.build(cost, a=a, b=b, check=False)
    solver = registry("solvers").get(name).from_spec(SETTINGS.get(name, {}))
    s = solver.solve(problem)
    assert s.status[0].ok and math.isfinite(float(s.gap[0]))
    assert not math.isfinite(float(s.gap[1]))
    assert s.status[1] is Status.NON_FINITE


def test_assignment_refuses_what_is_not_one() -> None:
    cost, _, _ = random_problem(24)
    with pytest.raises(ProblemError, match="problem 0 has 9 sources and 7 targets"):
        pruneopt.solve("assignment", cost)
    square, a, _ = random_problem(24, n=7, m=7)
    a[0] = 1 / 7
    with pytest.raises(ProblemError, match="not all equal"):
        pruneopt.solve("assignment", square, a=a, b=a)


# ---------------------------------------------------------------- dtypes, purity, errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_low_precision_input_is_promoted(name: str, dtype: torch.dtype) -> None:
    cost, a, b = random_problem(25, n=12, m=10)
    half = cost.to(dtype)
    s = run(name, half, a.float(), b.float())
    assert s.dtype in (torch.float32, torch.float64)
    want = run(name, half.double(), a.float().double(), b.float().double())
    torch.testing.assert_close(s.plan.double(), want.plan, rtol=0, atol=2e-5)
    torch.testing.assert_close(s.value, want.value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone_and_calls_repeat(name: str) -> None:
    cost, a, b = random_problem(26)
    kept = [x.clone() for x in (cost, a, b)]
    state = torch.get_rng_state()
    first, second = run(name, cost, a, b), run(name, cost, a, b)
    assert all(torch.equal(x, y) for x, y in zip((cost, a, b), kept, strict=True))
    assert torch.equal(first.plan, second.plan) and torch.equal(torch.get_rng_state(), state)
    assert first.seconds > 0


@pytest.mark.parametrize("name", ALL)
def test_spec_round_trip(name: str) -> None:
    part = registry("solvers").get(name).from_spec(SETTINGS.get(name, {}))
    spec = part.to_spec()
    assert spec.pop("kind") == name
    assert type(part).from_spec(spec) == part


def test_bad_input_names_the_argument_and_the_problem() -> None:
    cost, a, b = random_problem(27)
    bad = cost.clone()
    bad[1, 0, 0] = math.inf
    negative = a.clone()
    negative[1, 0] -= 0.5
    cases = [
        ((bad, a, b), "cost is not finite in problem 1"),
        ((cost[0], a, b), "add a batch axis"),
        ((cost, negative, b), "a has a negative or non-finite entry in problem 1"),
        ((cost, a, b * 2), "b sums to 2 in problem 0"),
        ((cost, b, a), "a must have shape"),
        ((cost.long(), a, b), "cost must be floating point"),
        ((cost.numpy(), a, b), "must be a torch tensor"),
        ((cost[:, :0], None, b), "cost is empty"),
    ]
    for (moved, rows, cols), message in cases:
        with pytest.raises(ProblemError, match=message):
            pruneopt.solve("sinkhorn", moved, a=rows, b=cols)
    with pytest.raises(ProblemError, match="square problems only"):
        pruneopt.solve("emd", cost, mask=torch.ones(2, 9, dtype=torch.bool))
    odd = torch.ones(cost.shape, dtype=torch.bool)
    odd[1, 0, 0] = False
    with pytest.raises(ProblemError, match="mask of problem 1 forbids single pairs"):
        pruneopt.solve("emd", cost, mask=odd)
    with pytest.raises(ProblemError, match="subset problems"):
        pruneopt.solve("farthest_point", cost)
    with pytest.raises(SpecError, match="did you mean 'epsilon'"):
        pruneopt.solve("sinkhorn", cost, eps=0.1)
    with pytest.raises(SpecError, match=r"sinkhorn\.epsilon must be above 0"):
        pruneopt.solve("sinkhorn", cost, epsilon=0.0)
    with pytest.raises(pruneopt.PruneoptError, match="did you mean 'sinkhorn'"):
        pruneopt.solve("sinkhron", cost)
    with pytest.raises(SpecError, match="cvxpy has no"):
        pruneopt.solve("lp", cost, solver="HIGH")


def test_importing_pruneopt_loads_no_solver_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, pruneopt; from pruneopt.parts.solvers import _solve, emd, lp\n"
        "assert not {'ot', 'cvxpy', 'highspy', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
