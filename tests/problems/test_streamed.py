"""Transport by rows: the same solutions, readouts and certificates as with matrices."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from relaxed_cases import many

import pruneopt
from pruneopt.parts.solvers.clustered import Clustered
from pruneopt.parts.solvers.one_sided import OneSided
from pruneopt.problems import pooled as pooling
from pruneopt.problems import streamed, unstored
from pruneopt.problems.certificate import certify
from pruneopt.problems.pooled import Gibbs, Shared, pooled
from pruneopt.problems.row_sums import Mapped, Scaled, Total
from pruneopt.problems.rows import Beside, Gram, Rows, Stored
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.streamed import certify_by_rows
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, rows_of
from pruneopt.registry import registry

READOUTS = ("row_sum", "row_cost", "row_max", "dual_source", "diagonal")


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a row or two, so that every sum over blocks has several."""
    monkeypatch.setattr(pooling, "SMALL", 40)


def by_rows(problem: TransportProblem) -> TransportProblem:
    cost = Unstored(Stored(problem.cost))
    masks = {"row_mask": problem.row_mask, "col_mask": problem.col_mask}
    return TransportProblem.build(cost, a=problem.a, b=problem.b, **masks)


def terms() -> dict[str, Rows]:
    x, y, u, v = randn(2, 6, 3, seed=0), randn(2, 5, 3, seed=1), randn(2, 6, seed=2), randn(2, 5, seed=3)
    squares = Total((Beside(x.square().sum(2), y.square().sum(2)), Gram(x, y)), (1.0, -2.0))
    near = Mapped(squares, lambda d: d.neg_().exp_())
    numbers = torch.tensor([2.0, 0.5]).double(), torch.tensor([3.0, 0.0]).double()
    return {
        "gram": Gram(x, y),
        "beside": Beside(u, v),
        "stored": Stored(x @ y.transpose(1, 2)),
        "squares": Mapped(squares, pooling.without_rounding),
        "mapped": near,
        "scaled": Scaled(squares, *numbers),
        "total": Total((near, Gram(x, y), Beside(u, v)), (0.5, 2.0, 1.0)),
    }


@pytest.mark.parametrize("name", terms())
def test_pooled_columns_are_sums_over_the_group(name: str) -> None:
    term = terms()[name]
    label = torch.tensor([[0, 2, 2, 1, 0], [3, 3, 3, 0, 1]])
    weight = randn(2, 5, seed=4).abs()
    hot = torch.nn.functional.one_hot(label, 4).double() * weight[:, :, None]
    torch.testing.assert_close(pooled(term, (label, weight, 4)), term.dense() @ hot, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["shared", "gibbs"])
def test_plans_by_rows_are_their_matrices(kind: str) -> None:
    if kind == "shared":
        left, label = randn(2, 5, 3, seed=0).abs(), torch.tensor([[0, 2, 2, 1, 0], [1, 1, 1, 0, 1]])
        share = randn(2, 5, seed=1).abs()
        plan: Rows = Shared(left, label, share)
        hot = torch.nn.functional.one_hot(label, 3).double()
        whole = left @ (hot * share[:, :, None]).transpose(1, 2)
    else:
        cost, f, g = randn(2, 5, 5, seed=0), randn(2, 5, seed=1), randn(2, 5, seed=2)
        eps = torch.tensor([0.7, 2.0]).double()
        plan = Gibbs(Stored(cost), f, g, eps)
        whole = ((f[:, :, None] + g[:, None, :] - cost) / eps[:, None, None]).exp()
    x, pick = randn(2, 5, seed=3), torch.tensor([[4, 0], [1, 1]])
    torch.testing.assert_close(plan.dense(), whole)
    torch.testing.assert_close(plan.block(pick), whole.gather(1, pick[:, :, None].expand(-1, -1, 5)))
    torch.testing.assert_close(
        plan.block(slice(1, 3), pick), whole[:, 1:3].gather(2, pick[:, None].expand(-1, 2, -1))
    )
    torch.testing.assert_close(plan.own(), whole.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(plan.product(x), (whole @ x[:, :, None])[:, :, 0])
    torch.testing.assert_close(plan.turned().dense(), whole.transpose(1, 2))
    torch.testing.assert_close(plan.samples(slice(1, 2)).dense(), whole[1:])


def certificates_by_rows_are_certificates() -> None:
    """Junk and good plans at all scales: the value is that of `certify`, the bound below the optimum."""
    problem = many(5, 400)
    optimum = pruneopt.solve(
        "emd", problem.cost, a=problem.a, b=problem.b, mask=(problem.row_mask, problem.col_mask)
    )
    unit, lazy = problem.cost_range(), by_rows(problem)
    plan = randn(400, 5, 4, seed=1).abs() * (problem.a > 0)[:, :, None] * (problem.b > 0)[:, None, :]
    g = randn(400, 4, seed=2) * unit[:, None]
    for p in (plan, optimum.plan):
        for start in (g, optimum.g):
            whole = certify(problem, p, g=start)
            found = certify_by_rows(lazy, p, f=None, g=start)
            assert torch.allclose(found.value / unit, whole.value / unit, atol=1e-9, rtol=1e-12)
            assert torch.allclose(found.gap / unit, whole.gap / unit, atol=1e-9, rtol=1e-9)
            assert bool((found.lower_bound <= optimum.value + 1e-9 * unit).all()), "a bound above the optimum"
            assert torch.allclose(found.row_error, whole.row_error, atol=1e-12)
            assert torch.allclose(found.col_error, whole.col_error, atol=1e-12)
        for f in (randn(400, 5, seed=3) * unit[:, None], optimum.f, None):
            found = certify_by_rows(lazy, p, f=f, g=None)
            assert bool((found.lower_bound <= optimum.value + 1e-9 * unit).all()), "a bound above the optimum"
            assert bool((found.value >= optimum.lower_bound - 1e-9 * unit).all()), "a value below the optimum"
    tight = certify_by_rows(lazy, optimum.plan, f=optimum.f, g=None)
    assert bool((tight.gap <= 1e-9 * unit).all())


def test_certificates_by_rows_are_certificates() -> None:
    assert certificates_by_rows_are_certificates() is None


def wrong_axis(real: Any) -> Any:
    """The c-transform takes the least of the block over all rows."""
    return lambda problem, g: real(problem, g).amin(1, keepdim=True).expand(-1, problem.a.shape[1]) + 1


def forgets_a_block(real: Any) -> Any:
    """The first block is left out."""

    def blocks(term: Rows) -> Any:
        parts = list(real(term))
        return parts[1:] or parts

    return blocks


PLANTED = {"_least": wrong_axis, "small_blocks": forgets_a_block}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_in_streaming_are_noticed(name: str) -> None:
    bug = PLANTED[name](getattr(streamed, name))
    with mock.patch.object(streamed, name, bug), pytest.raises((AssertionError, RuntimeError)):
        certificates_by_rows_are_certificates()


def clusters_give_a_true_upper_bound() -> None:
    """At every count of groups the value is the cost of a feasible plan, the bound below the optimum."""
    gen = torch.Generator().manual_seed(0)
    heaps = torch.randn(3, 5, 4, generator=gen, dtype=torch.float64)
    x, y = (heaps[:, torch.arange(n) % 5] + 0.1 * torch.randn(3, n, 4, generator=gen) for n in (30, 24))
    cost = torch.cdist(x, y).square()
    a, b = (torch.rand(3, n, generator=gen, dtype=torch.float64) for n in (30, 24))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    best = pruneopt.solve("emd", cost, a=a, b=b)
    last = torch.full((3,), torch.inf).double()
    for count in (1, 5, 12, 24):
        for factor in (1e-12, 1.0, 1e12):
            found = pruneopt.solve("clustered", cost * factor, a=a, b=b, clusters=count, by={"kind": "emd"})
            plan = found.plan.whole()
            assert torch.allclose(plan.sum(2), a, atol=1e-12) and torch.allclose(plan.sum(1), b, atol=1e-12)
            paid = (plan * cost).sum((1, 2))
            assert torch.allclose(found.value / factor, paid, rtol=1e-9)
            assert bool((found.lower_bound / factor <= best.value * (1 + 1e-9)).all())
            assert bool((best.value <= found.value / factor + 1e-9).all())
        assert bool((paid <= last + 1e-9).all()) or count == 12
        last = paid
    assert torch.allclose(paid, best.value, atol=1e-12) and set(found.status) == {Status.OPTIMAL}


def test_clusters_give_a_true_upper_bound() -> None:
    assert clusters_give_a_true_upper_bound() is None


def test_a_forgotten_cluster_is_noticed() -> None:
    def short(values: torch.Tensor, groups: Any) -> torch.Tensor:
        out = pooling.pool_rows(values, groups)
        out[:, -1] = 0
        return out

    with (
        mock.patch("pruneopt.parts.solvers.clustered.pool_rows", short),
        pytest.raises(AssertionError),
    ):
        clusters_give_a_true_upper_bound()


@pytest.mark.parametrize("name", ["one_sided", "clustered"])
def test_a_cost_by_rows_gives_the_answer_of_the_matrix(name: str) -> None:
    """Masks and atoms without mass included, and no solver, readout or certificate reads the matrix."""
    gen = torch.Generator().manual_seed(1)
    cost = torch.rand(3, 12, 12, generator=gen, dtype=torch.float64)
    mask = torch.arange(12) < torch.tensor([12, 9, 5])[:, None]
    a = torch.rand(3, 12, generator=gen, dtype=torch.float64) * mask
    a[:, 1] = 0
    a = a / a.sum(1, keepdim=True)
    whole = TransportProblem.build(cost, a=a, row_mask=mask, col_mask=mask)
    solver = OneSided() if name == "one_sided" else Clustered(clusters=4)
    lazy = by_rows(whole)
    first = solver.solve(whole)
    with mock.patch.object(Unstored, "whole", side_effect=AssertionError("the matrix was read")):
        second = solver.solve(lazy)
        seen = {r: read(r, second) for r in READOUTS if (name, r) != ("one_sided", "dual_source")}
        bounds = second.value, second.lower_bound, second.status
    torch.testing.assert_close(rows_of(second.plan).dense(), rows_of(first.plan).dense())
    for readout, out in seen.items():
        expected = registry("readouts").get(readout)()(whole, dense(first))
        torch.testing.assert_close(out[mask], expected[mask], msg=f"{readout} differs")
    torch.testing.assert_close(bounds[0], first.value)
    torch.testing.assert_close(bounds[1], first.lower_bound)
    best = pruneopt.solve("emd", cost, a=a, mask=mask)
    assert bool((bounds[1] <= best.value + 1e-9).all())
    assert bounds[2] == first.status


def read(readout: str, solution: TransportSolution) -> torch.Tensor:
    return registry("readouts").get(readout)()(solution.problem, solution)


def dense(solution: TransportSolution) -> TransportSolution:
    from dataclasses import replace

    plan = rows_of(solution.plan).dense()
    g = solution.g if solution.g is not None else solution.certificate.g
    return replace(solution, plan=plan, g=g)


def test_one_sided_mass_is_read_by_rows() -> None:
    cost = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = TransportProblem.build(cost)
    found = OneSided().solve(by_rows(whole))
    for name in ("one_sided_mass", "row_sum_target_last"):
        readout = registry("readouts").get(name)()
        torch.testing.assert_close(readout(found.problem, found), readout(whole, OneSided().solve(whole)))


def test_a_spec_states_a_large_cost_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gen = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    xy = torch.stack([x, y], 2).reshape(1, 48, 2)
    signals = {
        "hidden_in": torch.randn(1, 48, 8, generator=gen),
        "post_attention_norm": torch.randn(1, 48, 8, generator=gen),
        "xy": xy,
        "grid": torch.tensor([8, 6]).expand(1, 48, 2),
    }
    for more in ([], ["solver={kind: clustered, clusters: 16}", "readout=dual_source"]):
        spec = pruneopt.load_spec("topv", overrides=["budget.keep=9", *more])
        first = pruneopt.select(spec, signals)
        monkeypatch.setattr(unstored, "WHOLE", 100)
        second = pruneopt.select(spec, signals)
        monkeypatch.undo()
        assert isinstance(second.solution.problem.cost, Unstored)
        assert not isinstance(first.solution.problem.cost, Unstored)
        assert torch.equal(first.keep, second.keep)
