"""Readouts: the card's test vectors, what each is, and which of them cannot see the cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from transport_cases import FAST_SEEDS, random_problem

import pruneopt
from pruneopt.errors import ProblemError
from pruneopt.parts import Readout
from pruneopt.registry import registry

NAMES = (
    "row_sum", "row_sum_target_last", "one_sided_mass", "row_cost", "dual_source", "row_max", "diagonal",
)  # fmt: skip


def readout(name: str) -> Readout:
    return registry("readouts").get(name)()


def card() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The 2x2 grid of the TopV card: cost, source and target marginals."""
    s = torch.tensor([[1.0, 0], [0, 2], [1, 1], [3, 0]], dtype=torch.float64)
    t = torch.tensor([[1.0, 1], [0, 1], [2, 0], [1, 0]], dtype=torch.float64)
    xy = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.float64)
    feature = (s[:, None] - t[None]).square().sum(2)
    feature = (feature - feature.min()) / (feature.max() - feature.min())
    space = 1 - (-(xy[:, None] - xy[None]).square().sum(2) / 2).exp()
    cost = feature + space + 0.01 * (xy - 0.5).norm(dim=1)[:, None]
    p, q = s.norm(dim=1), t.norm(dim=1)
    return cost[None], (p / p.sum())[None], (q / q.sum())[None]


HOW = {"epsilon": 0.5, "epsilon_scale": "absolute"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_topv_vectors(dtype: torch.dtype) -> None:
    cost, p, q = (x.to(dtype) for x in card())
    want = torch.tensor([[0.107071, 0.600540, 0.500540, 0.639192]], dtype=dtype)
    torch.testing.assert_close(cost[:, 0], want, rtol=0, atol=1e-6)
    printed = pruneopt.solve("sinkhorn", cost, a=p, b=q, rounds=3, **HOW)
    one_sided = pruneopt.solve("one_sided", cost, a=p, b=q, **HOW)
    exact = torch.tensor([[0.134876, 0.269752, 0.190744, 0.404628]], dtype=dtype)
    assert_near(readout("row_sum")(printed.problem, printed), exact)
    assert_near(readout("row_sum")(printed.problem, printed), p, 1e-7)
    assert_near(
        readout("row_sum_target_last")(printed.problem, printed), [[0.135000, 0.270618, 0.190602, 0.403780]]
    )
    masses = [[0.301346, 0.192717, 0.323049, 0.182888]]
    for solution in (one_sided, printed):
        assert_near(readout("one_sided_mass")(solution.problem, solution), masses)
    assert float(pruneopt.solve("emd", cost, a=p, b=q).value) == pytest.approx(0.318047, abs=1e-6)


def assert_near(got: torch.Tensor, want: object, atol: float = 1e-6) -> None:
    want = want if isinstance(want, torch.Tensor) else torch.tensor(want)
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=atol)


@given(FAST_SEEDS)
def test_every_readout_is_what_it_says(seed: int) -> None:
    cost, a, b = random_problem(seed, n=8, m=8)
    s = pruneopt.solve("sinkhorn", cost, a=a, b=b, epsilon=0.1, rounds=4)
    plan, eps = s.plan, s.stats["epsilon"][:, None, None]
    f = s.f
    closing = b[:, None, :] * ((f[:, :, None] - cost) / eps).softmax(1)
    want = {
        "row_sum": plan.sum(2),
        "row_sum_target_last": closing.sum(2),
        "one_sided_mass": (b[:, None, :] * (-cost / eps).softmax(1)).sum(2),
        "row_cost": -(plan * cost).sum(2) / plan.sum(2),
        "dual_source": (a * f).sum(1, keepdim=True) - f,
        "row_max": plan.amax(2) / plan.sum(2),
        "diagonal": torch.stack([p.diagonal() for p in plan]) / plan.sum(2),
    }
    for name in NAMES:
        got = readout(name)(s.problem, s)
        torch.testing.assert_close(got.double(), want[name], rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(closing.sum(1), b)


def test_cheap_tokens_score_higher_where_the_cost_is_seen() -> None:
    """Source 0 is near every target, source 1 far from all: every cost-sensitive readout must prefer 0."""
    cost = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
    cost[:, 0] -= 0.9
    cost[:, 1] += 2
    for solver, names in (
        ("sinkhorn", ("row_cost", "dual_source", "one_sided_mass")),
        ("emd", ("row_cost", "dual_source")),
        ("one_sided", ("one_sided_mass", "row_sum", "row_cost")),
    ):
        s = pruneopt.solve(solver, cost)
        for name in names:
            order = readout(name)(s.problem, s)[0]
            assert int(order.argmax()) == 0 and int(order.argmin()) == 1, (solver, name)


def test_a_source_only_cost_enters_the_dual_additively() -> None:
    cost, a, b = random_problem(3)
    extra = torch.linspace(0, 1, 9, dtype=torch.float64).expand(2, 9)
    for name, how in (("emd", {}), ("sinkhorn", {"rounds": 3000, "tolerance": 1e-13, **HOW})):
        one = pruneopt.solve(name, cost, a=a, b=b, **how)
        two = pruneopt.solve(name, cost + extra[:, :, None], a=a, b=b, **how)
        shift = readout("dual_source")(two.problem, two) - readout("dual_source")(one.problem, one)
        want = (a * extra).sum(1, keepdim=True) - extra
        torch.testing.assert_close(shift, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "diagonal"])
def test_padding_and_massless_tokens_are_harmless(name: str) -> None:
    cost, a, b = random_problem(5, n=9, m=9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 4], mask[1, 0] = False, False
    a, b = a * mask, b * mask
    a[:, 6] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    s = pruneopt.solve("sinkhorn", cost, a=a, b=b, mask=mask, **HOW)
    got = readout(name)(s.problem, s)
    assert got.shape == (2, 9) and got[mask].isfinite().all()
    for i in range(2):
        keep = mask[i]
        small = cost[i, keep][:, keep][None]
        t = pruneopt.solve("sinkhorn", small, a=a[i, keep][None], b=b[i, keep][None], **HOW)
        torch.testing.assert_close(
            readout(name)(t.problem, t)[0], got[i, keep], rtol=0, atol=1e-6, check_dtype=False
        )


CLAIMS = {
    ("row_sum", "sinkhorn"): True,
    ("row_sum", "emd"): True,
    ("row_sum", "exact"): True,
    ("row_sum", "lp"): True,
    ("row_sum", "assignment"): True,
    ("row_sum", "proximal"): True,
    ("row_sum", "sinkhorn_newton"): True,
    ("row_sum", "north_west"): True,
    ("row_sum", "greedy_rows"): True,
    ("row_sum", "one_sided"): False,
    ("dual_source", "one_sided"): True,
    ("dual_source", "sinkhorn"): False,
    ("row_cost", "emd"): False,
    ("row_sum_target_last", "sinkhorn"): False,
    ("one_sided_mass", "sinkhorn"): False,
}


@pytest.mark.parametrize(("name", "solver"), CLAIMS)
def test_cost_blindness_is_claimed_exactly_where_it_holds(name: str, solver: str) -> None:
    """Solve with two unrelated costs: a blind readout must not move, a seeing one must."""
    how = {"sinkhorn": {"rounds": 3}, "lp": {"route": "direct"}}.get(solver, {})
    part = registry("solvers").get(solver).from_spec(how)
    why = readout(name).ignores_cost(part)
    assert (why is not None) == CLAIMS[name, solver]
    one, a, b = random_problem(6, n=8, m=8)
    two, _, _ = random_problem(7, n=8, m=8)
    if solver == "assignment":
        a = b = None
    seen = []
    for cost in (one, two):
        s = pruneopt.solve(solver, cost, a=a, b=b, **how)
        seen.append(readout(name)(s.problem, s))
    moved = float((seen[0] - seen[1]).abs().max())
    assert (moved < 1e-9) == CLAIMS[name, solver], moved
    assert why is None or f"{name} cannot depend on the cost" in why


def test_row_sum_sees_the_cost_when_the_target_side_is_last() -> None:
    part = registry("solvers").get("sinkhorn")(order="source_then_target", rounds=3)
    assert readout("row_sum").ignores_cost(part) is None
    one, a, b = random_problem(6)
    two, _, _ = random_problem(7)
    sums = [
        pruneopt.solve("sinkhorn", c, a=a, b=b, order=part.order, rounds=3).plan.sum(2) for c in (one, two)
    ]
    assert float((sums[0] - sums[1]).abs().max()) > 1e-3


def test_readouts_that_lack_what_they_need_say_so() -> None:
    cost, a, b = random_problem(8)
    emd, greedy = pruneopt.solve("emd", cost, a=a, b=b), pruneopt.solve("greedy_rows", cost, a=a, b=b)
    with pytest.raises(ProblemError, match="row_sum_target_last needs the epsilon"):
        readout("row_sum_target_last")(emd.problem, emd)
    with pytest.raises(ProblemError, match="dual_source needs dual potentials, which greedy_rows"):
        readout("dual_source")(greedy.problem, greedy)
    with pytest.raises(ProblemError, match="diagonal needs as many targets as sources"):
        readout("diagonal")(emd.problem, emd)
