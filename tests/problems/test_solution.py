"""Certificates by hand, statuses that cannot lie, selections against list manipulation."""

from __future__ import annotations

import math

import pytest
import torch

from pruneopt.errors import ProblemError
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import (
    Status,
    SubsetSolution,
    TransportSolution,
    c_transform,
    certify,
    round_to_polytope,
    settled,
)
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem

T, F = True, False


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rounding_scales_rows_then_columns_then_spreads_what_is_left() -> None:
    """By hand: rows (0.6, 0.2) against a = (0.5, 0.5), columns after the first scaling against b."""
    plan = f64([[[0.45, 0.15], [0.15, 0.05]]])
    a, b = f64([[0.5, 0.5]]), f64([[0.4, 0.6]])
    # rows: the first is 0.6 > 0.5, scaled by 5/6 -> (0.375, 0.125); the second 0.2 stays
    # columns: 0.525 > 0.4, scaled by 0.4/0.525; 0.175 < 0.6 stays
    s = 0.4 / 0.525
    scaled = [[0.375 * s, 0.125], [0.15 * s, 0.05]]
    left_a = [0.5 - sum(scaled[0]), 0.5 - sum(scaled[1])]
    left_b = [0.0, 0.6 - 0.175]
    wanted = [[scaled[i][j] + left_a[i] * left_b[j] / sum(left_a) for j in range(2)] for i in range(2)]
    out = round_to_polytope(plan, a, b=b)
    assert torch.allclose(out[0], f64(wanted), atol=1e-15)
    assert torch.allclose(out.sum(2), a, atol=1e-15) and torch.allclose(out.sum(1), b, atol=1e-15)


def test_rounding_leaves_a_feasible_plan_alone_and_repairs_any_other() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    b = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    feasible = a[:, :, None] * b[:, None, :]
    assert torch.allclose(round_to_polytope(feasible, a, b=b), feasible, atol=1e-15)
    wild = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    wild[1] = 0
    wild[2] = 1e6
    out = round_to_polytope(wild, a, b=b)
    assert (out >= 0).all()
    assert torch.allclose(out.sum(2), a, atol=1e-12) and torch.allclose(out.sum(1), b, atol=1e-12)
    assert torch.allclose(out[1], feasible[1], atol=1e-15)  # nothing is left but the independent plan


def test_rounding_meets_rows_and_columns_without_mass() -> None:
    a, b = f64([[0.0, 1.0]]), f64([[1.0, 0.0]])
    out = round_to_polytope(f64([[[0.5, 0.5], [0.5, 0.5]]]), a, b=b)
    assert out.tolist() == [[[0, 0], [1, 0]]]


def test_a_c_transform_is_the_smallest_reduced_cost_over_real_pairs() -> None:
    cost = f64([[[1.0, 4.0, 2.0], [6.0, 3.0, 9.0]]])
    g = f64([[0.5, 2.5, -1.0]])
    assert c_transform(cost, g, real=None, rows=True).tolist() == [[0.5, 0.5]]
    assert c_transform(cost, f64([[0.25, 4.0]]), real=None, rows=False).tolist() == [[0.75, -1.0, 1.75]]
    real = torch.tensor([[[T, F, T], [F, F, F]]])
    assert c_transform(cost, g, real=real, rows=True).tolist() == [[0.5, 0]]
    assert c_transform(cost, f64([[0.25, 4.0]]), real=real, rows=False).tolist() == [[0.75, 0, 1.75]]


COST = [[[0.0, 2.0], [3.0, 1.0]], [[1.0, 5.0], [2.0, 2.0]]]
A, B = [[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.25, 0.75]]


def problem() -> TransportProblem:
    return TransportProblem.build(torch.tensor(COST), a=torch.tensor(A), b=torch.tensor(B))


def test_a_certificate_by_hand() -> None:
    """The optima: move 1/4 from the first row to the second column (0.75), and 1/4 (2.25)."""
    plan = torch.tensor([[[0.5, 0.25], [0.0, 0.25]], [[0.25, 0.25], [0.0, 0.5]]])
    g = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    # f = min_j c - g, then g again: f = (0, -1), (1, -2)
    found = certify(problem(), plan, g=g)
    assert found.value.tolist() == [0.75, 2.5]
    assert found.lower_bound.tolist() == [0.75 * 0 + 0.25 * -1 + 0.5 * 0 + 0.5 * 2, 0.5 - 1 + 0 + 0.75 * 4]
    assert found.gap.tolist() == [0, 0]
    assert found.row_error.tolist() == [0, 0] and found.col_error.tolist() == [0, 0]
    assert found.value.dtype == found.gap.dtype == torch.float64


def test_without_a_potential_the_bound_is_that_of_zero() -> None:
    plan = torch.tensor(A)[:, :, None] * torch.tensor(B)[:, None, :]
    found = certify(problem(), plan, g=None)
    value = [sum(A[s][i] * B[s][j] * COST[s][i][j] for i in range(2) for j in range(2)) for s in range(2)]
    # f = row minima (0, 1), (1, 2); g = min_i c - f: (0, 0), (0, 0)
    assert found.value.tolist() == pytest.approx(value)
    assert found.lower_bound.tolist() == [0.25, 1.5]
    assert found.gap.tolist() == pytest.approx([value[0] - 0.25, value[1] - 1.5])


def test_marginal_errors_are_those_of_the_plan_before_rounding() -> None:
    plan = torch.tensor([[[0.5, 0.0], [0.0, 0.25]], [[0.5, 0.5], [0.0, 0.5]]])
    found = certify(problem(), plan, g=None)
    assert found.row_error.tolist() == [0.25 + 0, 0.5 + 0]
    assert found.col_error.tolist() == [0 + 0.25, 0.25 + 0.25]


def test_masked_pairs_neither_cost_nor_bound() -> None:
    mask = torch.tensor([[T, T, F]])
    cost = torch.tensor([[[0.0, 2.0, -50.0], [3.0, 1.0, -50.0], [-50.0, -50.0, -50.0]]])
    a, b = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    masked = TransportProblem.build(cost, a=a, b=b, row_mask=mask, col_mask=mask)
    plan = torch.tensor([[[0.5, 0.25, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]]])
    found = certify(masked, plan, g=torch.tensor([[0.0, 2.0, 0.0]]))
    assert (found.value.item(), found.lower_bound.item(), found.gap.item()) == (0.75, 0.75, 0)


def by_loops(cost: list, a: list, b: list, g: list) -> dict[str, float]:
    """Bound, potentials and price of the independent plan of one problem, one number after another."""
    rows, cols = range(len(a)), range(len(b))
    f = [min(cost[i][j] - g[j] for j in cols) for i in rows]
    tight = [min(cost[i][j] - f[i] for i in rows) for j in cols]
    low = min(min(row) for row in cost)
    bound = sum(x * y for x, y in zip(a, f, strict=True)) + sum(x * y for x, y in zip(b, tight, strict=True))
    paid = sum(a[i] * b[j] * cost[i][j] for i in rows for j in cols)
    return {"value": paid, "lower_bound": max(low, bound), "tolerance": 1e-9 * (paid - low)}


@pytest.mark.parametrize("offset", [0.0, 10.0, -10.0])
def test_certificates_are_those_of_loops_over_the_real_atoms(offset: float) -> None:
    """Masked atoms stand anywhere and hold anything; the certificate is that of the problem without them."""
    generator = torch.Generator().manual_seed(3)

    def rand(*sizes: int) -> torch.Tensor:
        return torch.rand(*sizes, generator=generator, dtype=torch.float64)

    rows = torch.tensor([[T, T, F, T], [T, T, T, T], [F, T, T, F]])
    cols = torch.tensor([[F, T, T, T, T], [T, F, T, T, F], [T, T, T, T, T]])
    real = rows[:, :, None] & cols[:, None, :]
    cost = torch.where(real, rand(3, 4, 5) + offset, -1e6)
    a, b = (rand(*m.shape).masked_fill(~m, 0) for m in (rows, cols))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    g = rand(3, 5).masked_fill(~cols, 50.0)
    stated = TransportProblem.build(cost, a=a, b=b, row_mask=rows, col_mask=cols)
    found = certify(stated, a[:, :, None] * b[:, None, :], g=g)
    for s in range(3):
        r, c = rows[s], cols[s]
        wanted = by_loops(cost[s][r][:, c].tolist(), a[s, r].tolist(), b[s, c].tolist(), g[s, c].tolist())
        for name, value in wanted.items():
            assert getattr(found, name)[s].item() == pytest.approx(value, abs=1e-12), name
        f, tight = found.f[s, r], found.g[s, c]
        assert (f[:, None] + tight[None, :] <= cost[s][r][:, c] + 1e-12).all()
        dual = (a[s, r] * f).sum() + (b[s, c] * tight).sum()
        assert dual.item() <= found.lower_bound[s].item() + 1e-12
    assert torch.allclose(found.gap, found.value - found.lower_bound, atol=1e-12)
    assert found.row_error.tolist() == pytest.approx([0] * 3) == found.col_error.tolist()
    far = certify(stated, a[:, :, None] * b[:, None, :], g=None)
    near = [by_loops(cost[s][rows[s]][:, cols[s]].tolist(), a[s, rows[s]].tolist(), b[s, cols[s]].tolist(),
                     [0.0] * int(cols[s].sum()))["lower_bound"] for s in range(3)]  # fmt: skip
    assert far.lower_bound.tolist() == pytest.approx(near)


def test_potentials_far_from_zero_do_not_blur_the_bound() -> None:
    """Everything is a multiple of 2^-6, so that a shift by 2^40 loses nothing before the bound is summed."""
    cost = torch.tensor([[[1, 9], [8, 3], [5, 6]], [[4, 2], [7, 7], [1, 0]]], dtype=torch.float64) / 64
    a, b = f64([[1 / 3, 1 / 3, 1 / 3]] * 2), f64([[0.3, 0.7]] * 2)
    stated = TransportProblem.build(cost, a=a, b=b)
    g = f64([[0.0, 2 / 64], [1 / 64, 0.0]])
    plan = a[:, :, None] * b[:, None, :]
    shifted = certify(stated, plan, g=g + f64([[2.0**40], [-(2.0**41)]]))
    assert (shifted.lower_bound - certify(stated, plan, g=g).lower_bound).abs().max() < 1e-9


def test_masses_are_compared_after_division_by_their_sums() -> None:
    a, b = f64([[0.25, 0.75]]) * 1.0001, f64([[0.5, 0.5]]) * 0.9999
    stated = TransportProblem(f64([[[0.0, 2.0], [3.0, 1.0]]]), a, b)
    even = f64([[[0.125, 0.125], [0.375, 0.375]]])
    found = certify(stated, even, g=None)
    assert found.row_error.item() < 1e-12 and found.col_error.item() < 1e-12
    assert found.value.item() == pytest.approx(0.25 + 1.125 + 0.375, abs=1e-12)


def test_mass_at_the_level_of_rounding_is_dropped_and_not_moved() -> None:
    """Beside a cost of 1e15 a speck of 1e-17 would decide."""
    half = f64([[0.5, 0.5]])
    light, rest = f64([[0.01, 0.99]]), f64([[0.01, 0.99]])  # the limit is a share of the mass of the row
    for speck, kept in ((1e-18, F), (1e-17, T)):
        out = round_to_polytope(f64([[[0.01, speck], [0.0, 0.99]]]), light, b=rest)
        assert (out[0, 0, 1].item() > 0) is kept
    owed = f64([[[0.01, 0.0], [0.0, 0.99 - 1e-14]]])
    assert (
        round_to_polytope(owed, light, b=rest)[0, 1, 1] < 0.99
    )  # within 64 roundings of the mass: left alone
    owed = f64([[[0.01 - 1e-15, 0.0], [0.0, 0.99]]])
    assert round_to_polytope(owed, light, b=rest)[0, 0, 0] == pytest.approx(0.01, abs=1e-17)
    for speck, kept in ((1e-17, F), (1e-12, T)):
        plan = f64([[[0.5, speck], [0.0, 0.5]]])
        out = round_to_polytope(plan, half, b=half)
        assert (out[0, 0, 1].item() > 0) is kept
        assert torch.allclose(out.sum(2), half, atol=1e-15)
    short = f64([[[0.5 - 1e-16, 0.0], [0.0, 0.5]]])
    assert round_to_polytope(short, half, b=half)[0, 0, 1] == 0
    short[0, 0, 0] -= 1e-10
    assert round_to_polytope(short, half, b=half)[0, 0, 0] == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize("name", ["plan", "f", "g"])
def test_what_autograd_did_not_follow_refuses_by_name(name: str) -> None:
    stated = TransportProblem.build(torch.tensor(COST).requires_grad_(), a=torch.tensor(A), b=torch.tensor(B))
    given = {"plan": torch.full((2, 2, 2), 0.25), "f": torch.zeros(2, 2), "g": torch.zeros(2, 2)}
    for solver, called in (("", "this solver"), ("mine", "mine")):
        solution = TransportSolution(0.0, {}, stated, **given, solver=solver)
        assert torch.equal(getattr(solution, name), given[name])
        with pytest.raises(ProblemError) as caught:
            getattr(solution, name).sum().backward()
        assert str(caught.value) == (
            f"{called} has no gradient of `{name}`; sinkhorn (with omega=1) and one_sided differentiate in "
            "full, and `value` of a proved optimum (exact, emd, lp) in the cost and the marginals. "
            "Or take the result out of autograd with detach()"
        )
    followed = {key: tensor.clone().requires_grad_() for key, tensor in given.items()}
    kept = TransportSolution(0.0, {}, stated, **followed)
    assert getattr(kept, name) is followed[name]
    bare = TransportSolution(0.0, {}, stated, given["plan"])
    assert bare.f is None and bare.g is None
    plain = TransportSolution(0.0, {}, problem(), **given)
    assert getattr(plain, name) is given[name]
    with torch.no_grad():
        assert getattr(TransportSolution(0.0, {}, stated, **given), name) is given[name]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_plan_or_potential_never_has_a_small_gap(bad: float) -> None:
    plan = torch.tensor(A)[:, :, None] * torch.tensor(B)[:, None, :]
    for i in range(2):
        for j in range(2):
            spoiled = plan.clone()
            spoiled[1, i, j] = bad
            found = certify(problem(), spoiled, g=None)
            assert found.value.isnan().tolist() == [F, T]
            assert not found.gap[1] < 1e30
        g = torch.zeros(2, 2)
        g[1, i] = bad
        found = certify(problem(), plan, g=g)
        assert found.lower_bound[1] == -math.inf and found.gap[1] == math.inf
        assert found.gap[0].isfinite()


def test_a_potential_of_minus_infinity_means_a_column_that_takes_nothing() -> None:
    """`-inf` is what a column without mass has; its c-transform makes it finite again."""
    cost = torch.tensor([[[1.0, 4.0], [2.0, 3.0]]])
    moved = TransportProblem.build(cost, a=torch.tensor([[0.5, 0.5]]), b=torch.tensor([[1.0, 0.0]]))
    plan = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]])
    found = certify(moved, plan, g=torch.tensor([[0.0, -math.inf]]))
    assert found.value.tolist() == [1.5] and found.lower_bound.tolist() == [1.5] and found.gap.tolist() == [0]


ENDED = (Status.CONVERGED, Status.OPTIMAL)
SETTLED = (Status.CONVERGED, Status.UNPROVED)  # the certificate of these plans confirms no optimum


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_plan_or_potential_is_never_a_success(bad: float) -> None:
    good = {"plan": torch.full((2, 2, 2), 0.25), "f": torch.zeros(2, 2), "g": torch.zeros(2, 2)}
    assert TransportSolution(0.0, {}, problem(), **good, ended=ENDED).status == SETTLED
    assert TransportSolution(0.0, {}, problem(), good["plan"], ended=ENDED).status == SETTLED
    for name in good:
        for place in range(good[name][0].numel()):
            spoiled = good[name].clone()
            spoiled[1].view(-1)[place] = bad
            solution = TransportSolution(0.0, {}, problem(), **{**good, name: spoiled}, ended=ENDED)
            assert solution.status == (Status.CONVERGED, Status.NON_FINITE), (name, place)


def test_a_potential_of_minus_infinity_is_a_failure_only_where_there_is_mass() -> None:
    low = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    plan = torch.full((2, 2, 2), 0.25)
    one = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    for side, name in (("a", "f"), ("b", "g")):
        some = TransportProblem.build(torch.ones(2, 2, 2), **{side: one})
        found = TransportSolution(0.0, {}, some, plan, **{name: low}, ended=(Status.CONVERGED,) * 2)
        assert found.status == (Status.CONVERGED, Status.NON_FINITE), name
    spoiled = TransportSolution(0.0, {}, problem(), plan * -math.inf, ended=ENDED)
    assert spoiled.status == (Status.NON_FINITE,) * 2


def test_a_solution_reports_its_own_certificate() -> None:
    plan = torch.tensor([[[0.75, 0.0], [0.0, 0.25]], [[0.25, 0.25], [0.0, 0.25]]])
    solution = TransportSolution(0.0, {}, problem(), plan, g=torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    wanted = certify(problem(), plan, g=torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    found = {
        name: getattr(solution, name) for name in ("value", "lower_bound", "gap", "row_error", "col_error")
    }
    for name, tensor in found.items():
        assert torch.equal(tensor, getattr(wanted, name)), name
    assert len({tuple(tensor.tolist()) for tensor in found.values()}) == len(found) == 5
    assert solution.dtype == torch.float32


def test_which_statuses_may_be_used_and_which_are_proofs() -> None:
    unusable = {Status.INFEASIBLE, Status.NON_FINITE, Status.FAILED, Status.INVALID}
    assert {s for s in Status if not s.ok} == unusable
    assert {s for s in Status if s.proved} == {Status.OPTIMAL}


@pytest.mark.parametrize(
    ("ended", "gap", "left"),
    [
        (Status.OPTIMAL, 0.0, Status.OPTIMAL),
        (Status.OPTIMAL, 0.25, Status.OPTIMAL),
        (Status.OPTIMAL, 0.26, Status.UNPROVED),
        (Status.OPTIMAL, -0.25, Status.OPTIMAL),
        (Status.OPTIMAL, -0.26, Status.INVALID),
        (Status.OPTIMAL, math.nan, Status.UNPROVED),
        (Status.HEURISTIC, 9.0, Status.HEURISTIC),
        (Status.HEURISTIC, -9.0, Status.INVALID),
    ],
)
def test_a_claim_stands_only_within_its_slack(ended: Status, gap: float, left: Status) -> None:
    assert settled(ended, gap, slack=0.25) is left


def subset(unary: list[list[float]], keep: list[list[bool]], **more: object) -> SubsetSolution:
    stated = SubsetProblem.build("top_k", 1, unary=torch.tensor(unary), check=False)
    return SubsetSolution(0.0, {}, stated, torch.tensor(keep), ended=ENDED, **more)  # type: ignore[arg-type]


def test_subset_solutions_report_value_bound_and_gap() -> None:
    found = subset([[1.0, 3.0], [5.0, 2.0]], [[T, F], [T, F]])
    assert found.value.tolist() == [1, 5]
    assert found.upper_bound is not None and found.upper_bound.tolist() == [3, 5]
    assert found.gap is not None and found.gap.tolist() == [2, 0]
    assert found.no_bound == "" and found.status == ENDED
    proved = subset([[1.0, 3.0], [5.0, 2.0]], [[T, F], [T, F]], proved_bound=f64([2.5, 6.0]))
    assert proved.gap is not None and proved.gap.tolist() == [1.5, 1] and proved.no_bound == ""


def test_a_nan_objective_is_never_a_success() -> None:
    assert subset([[1.0, 3.0], [math.nan, 2.0]], [[T, F], [T, F]]).status == (
        Status.CONVERGED,
        Status.NON_FINITE,
    )


def emitted(keep: list[bool], rank: list[float] | None, width: int) -> list[int]:
    """Kept positions by rank, then dropped ones, each by index where ranks agree."""
    rank = rank or [0.0] * len(keep)
    order = sorted(range(len(keep)), key=lambda i: (not keep[i], rank[i], i))
    return order[:width]


KEEPS = [[T, F, T, T, F, F], [F, F, F, T, F, F], [F, T, T, T, T, T]]
RANKS = [[2.0, -9.0, 1.0, 1.0, 5.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 3.0, 3.0, -1.0, 2.0, 3.0]]


@pytest.mark.parametrize("ranks", [None, RANKS, [[0.0] * 6] * 3])
@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 1], [1], [2, 0]])
@pytest.mark.parametrize("counted", [True, False])
def test_emission_order_is_that_of_sorted_lists(ranks: list | None, rows: list[int], counted: bool) -> None:
    keep = [KEEPS[r] for r in rows]
    rank = None if ranks is None else [ranks[r] for r in rows]
    counts = tuple(sum(k) for k in keep)
    chosen = Selection(
        torch.tensor(keep), counts if counted else None, rank=None if rank is None else torch.tensor(rank)
    )
    assert chosen.known_counts == counts
    assert [i.tolist() for i in chosen.indices] == [[i for i, k in enumerate(row) if k] for row in keep]
    index = chosen.index()
    assert index.dtype == torch.int64
    rows_ranks = rank or [None] * len(rows)
    assert index.tolist() == [emitted(k, r, max(counts)) for k, r in zip(keep, rows_ranks, strict=True)]


def test_a_selection_is_described_in_one_line() -> None:
    keep = torch.tensor([[T, F]])
    assert repr(Selection(keep)) == "Selection(keeps [1] of 2 tokens on cpu)"
    for rows, shown in ((8, "1, 1, 1, 1, 1, 1, 1, 1"), (9, "1, 1, 1, 1, 1, 1, 1, 1, ...")):
        assert repr(Selection(keep.expand(rows, 2))) == f"Selection(keeps [{shown}] of 2 tokens on cpu)"
    full = Selection(
        keep, (1,), torch.ones(1, 2), size=torch.ones(1, 2), rank=torch.ones(1, 2),
        solution=subset([[1.0, 3.0], [5.0, 2.0]], [[T, F], [T, F]], solver="mine"),
        diagnostics=("a", "b", "c"), seconds={"x": 0.25, "y": 0.5},
    )  # fmt: skip
    assert repr(full) == (
        "Selection(keeps [1] of 2 tokens on cpu; importance, size, rank; mine CONVERGED OPTIMAL; "
        "3 diagnostics; 750.0 ms)"
    )


def test_diagnostics_are_added_and_nothing_else_changes() -> None:
    chosen = Selection(torch.tensor([[T, F]]), (1,), diagnostics=("a",))
    more = chosen.with_diagnostics(["b", "c"])
    assert more.diagnostics == ("a", "b", "c") and chosen.diagnostics == ("a",)
    assert more.keep is chosen.keep and more.counts == (1,)
