"""Normalising, combining, counting: values against formulas written with plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from fixed_parts import FixedCost, FixedKernel, FixedMarginal, FixedScore, bare, priced, scored
from torch import Tensor

from pruneopt.compose import (
    anchor_strength,
    combine,
    combine_anchors,
    combine_pairs,
    equal_quotas,
    keep_top,
    normalize,
    protected_tokens,
    subset_problem,
    transport_problem,
)
from pruneopt.errors import ProblemError, SignalError, SpecError
from pruneopt.parts.costs.cosine_distance import CosineDistance
from pruneopt.parts.kernels.cosine import CosineKernel
from pruneopt.problems import unstored
from pruneopt.spec.schema import ProblemSpec, Protect, Weighted

HOWS = ("minmax", "sum", "max", "zscore", "l2", "softmax")
T, F = True, False


def formula(how: str, x: list[float]) -> list[float]:
    """What each normalisation means, over a plain list of the real values."""
    n = len(x)
    mean = sum(x) / n
    shift, scale = {
        "minmax": (min(x), max(x) - min(x)),
        "sum": (0.0, sum(x)),
        "max": (0.0, max(abs(v) for v in x)),
        "zscore": (mean, math.sqrt(sum((v - mean) ** 2 for v in x) / n)),
        "l2": (0.0, math.sqrt(sum(v * v for v in x))),
        "softmax": (0.0, 1.0),
    }[how]
    if how == "softmax":
        total = sum(math.exp(v) for v in x)
        return [math.exp(v) / total for v in x]
    return [(v - shift) / scale if scale else 0.0 for v in x]


# where the padding stands, and what it holds against real values from -3.5 to 4.25
MASKS = ([T] * 6, [T, T, T, T, F, F], [F, F, T, T, T, T], [T, F, T, T, F, T], [F, F, F, T, F, F])
PADS = (-100.0, 0.25, 100.0)
VALUES = torch.tensor([[1.5, -2.0, 4.25, 0.5, -3.5, 2.5], [0.75, 3.0, -1.25, 2.0, 0.125, 4.0]])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("pad", PADS)
def test_normalising_scores_is_the_formula_over_real_values(how: str, pad: float) -> None:
    for row in MASKS:
        mask = torch.tensor([row, [T, T, T, F, T, T]])
        out = normalize(VALUES.masked_fill(~mask, pad), how, mask=mask)
        assert out.shape == VALUES.shape and out.isfinite().all()
        for sample in range(2):
            real = mask[sample]
            wanted = formula(how, VALUES[sample, real].tolist())
            assert out[sample, real].tolist() == pytest.approx(wanted, abs=2e-6), (how, row)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("cols", [3, 2])
def test_normalising_pairs_is_the_formula_over_real_pairs(how: str, pad: float, cols: int) -> None:
    """Square matrices are masked on both sides, rectangular ones only on the token side."""
    values = torch.tensor(
        [[[3.0, -1.0, 2.0], [0.5, 5.0, -2.5], [1.0, 4.0, -4.0]], [[1.0, 2.0, 3.5], [-1, 0, 2], [6, 1, -3]]]
    )[:, :, :cols]
    for row in ([T, T, T], [T, F, T], [F, T, T], [T, T, F]):
        mask = torch.tensor([row, [F, T, T]])
        real = mask[:, :, None].expand(values.shape)
        real = real & mask[:, None, :] if cols == 3 else real
        out = normalize(values.masked_fill(~real, pad), how, mask=mask)
        assert out.shape == values.shape
        for sample in range(2):
            wanted = formula(how, values[sample][real[sample]].tolist())
            assert out[sample][real[sample]].tolist() == pytest.approx(wanted, abs=2e-6), (how, row)


@pytest.mark.parametrize("how", ["minmax", "sum", "max", "zscore", "l2"])
def test_constant_or_zero_input_becomes_zeros(how: str) -> None:
    mask = torch.tensor([[T, T, F]])
    constant = torch.tensor([[0.0, 0.0, 9.0]]) if how in ("sum", "max", "l2") else torch.tensor([[2.0, 2, 9]])
    assert normalize(constant, how, mask=mask)[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("how", ["minmax", "sum", "max"])
def test_the_gradient_of_constant_input_is_zero_not_nan(how: str) -> None:
    values = torch.zeros(1, 3, requires_grad=True)
    normalize(values, how, mask=torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[0, 0, 0]]


def test_softmax_of_an_empty_sample_is_zero_and_of_padding_is_zero() -> None:
    out = normalize(torch.ones(2, 3), "softmax", mask=torch.tensor([[F, F, F], [T, F, T]]))
    assert out.tolist() == [[0, 0, 0], [0.5, 0, 0.5]]


@pytest.mark.parametrize("how", ["minmax", "sum", "max", "zscore", "l2"])
def test_a_sample_without_real_tokens_stays_finite_where_others_are_real(how: str) -> None:
    values = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    out = normalize(values, how, mask=torch.tensor([[F, F], [T, T]]))
    assert out[1].tolist() == pytest.approx(formula(how, [1.0, 3.0]))


def test_none_returns_the_very_tensor_and_float64_stays_float64() -> None:
    values = VALUES.double()
    mask = torch.ones(2, 6, dtype=torch.bool)
    assert normalize(values, "none", mask=mask) is values
    for how in HOWS:
        assert normalize(values, how, mask=mask).dtype == torch.float64


def test_summands_are_scaled_then_weighted_then_added() -> None:
    a, b = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[10.0, 10.0, 20.0]])
    signals = bare(1, 3)
    both = combine([scored(a, 0.5, "minmax"), scored(b, -2.0, "sum")], signals, pairwise=False)
    wanted = [0.5 * x - 2 * y for x, y in zip([0, 0.5, 1], [0.25, 0.25, 0.5], strict=True)]
    assert both is not None and both[0].tolist() == pytest.approx(wanted)
    assert combine([scored(b, 1.0)], signals, pairwise=False) is b
    assert combine([], signals, pairwise=False) is None


def test_a_weight_of_zero_never_calls_its_part_and_stops_nothing_else() -> None:
    off, on = scored(torch.full((1, 3), torch.nan), 0), scored(torch.ones(1, 3), 3)
    out = combine([off, on], bare(1, 3), pairwise=False)
    assert out is not None and out.tolist() == [[3, 3, 3]]
    assert off.part.seen == [] and len(on.part.seen) == 1
    assert combine([off], bare(1, 3), pairwise=False) is None


def test_a_part_sees_only_what_it_declares() -> None:
    term = scored(torch.ones(1, 3))
    point = Weighted("a", FixedCost(torch.ones(1, 2, 3), strong=torch.ones(1, 2)))
    signals = bare(1, 3, xy=torch.zeros(1, 3, 2))
    combine([term], signals, pairwise=False)
    combine_anchors([point], signals)
    anchor_strength([point], signals)
    for view in (*term.part.seen, *point.part.seen):
        assert list(view) == ["features"] and "xy" not in view
    assert len(point.part.seen) == 2


def test_normalising_inside_a_sum_looks_at_the_mask_of_the_signals() -> None:
    mask = torch.tensor([[T, T, F]])
    out = combine([scored(torch.tensor([[1.0, 3.0, 90.0]]), 1, "minmax")], bare(1, 3, mask), pairwise=False)
    assert out is not None and out[0, :2].tolist() == [0, 1]


def test_half_precision_scores_are_combined_in_float32_and_float64_stays() -> None:
    signals = bare(1, 3)
    for given, dtype in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        out = combine([scored(torch.tensor([[1, 2, 3.0]], dtype=given), 0.1)], signals, pairwise=False)
        assert out is not None and out.dtype == dtype
        assert out[0].tolist() == pytest.approx([0.1, 0.2, 0.3], rel=1e-6)


def test_unary_cost_terms_are_broadcast_over_targets() -> None:
    pair = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    unary = torch.tensor([[10.0, 20.0]])
    signals = bare(1, 2)
    for order in ([priced(pair), priced(unary, 2)], [priced(unary, 2), priced(pair)]):
        out = combine(order, signals, pairwise=True)
        assert out is not None and out.tolist() == [[[21, 22], [43, 44]]]
    alone = combine([priced(unary)], signals, pairwise=True)
    assert alone is not None and alone.tolist() == [[[10, 10], [20, 20]]]
    wide = combine([priced(torch.ones(1, 2, 5))], signals, pairwise=True)
    assert wide is not None and wide.shape == (1, 2, 5)


def test_a_unary_cost_alone_is_spread_over_every_sample() -> None:
    out = combine([priced(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))], bare(2, 2), pairwise=True)
    assert out is not None and out.tolist() == [[[1, 1], [2, 2]], [[3, 3], [4, 4]]]


def test_a_kernel_without_a_shape_is_pairwise() -> None:
    term = Weighted("k", FixedKernel(torch.eye(3)[None]))
    out = combine([term], bare(1, 3), pairwise=True)
    assert out is not None and out.shape == (1, 3, 3)
    with pytest.raises(SignalError, match="fixed_kernel returned shape"):
        combine([Weighted("k", FixedKernel(torch.ones(1, 3)))], bare(1, 3), pairwise=True)


@pytest.mark.parametrize(
    ("values", "pairwise"),
    [
        (torch.ones(2, 4), False),
        (torch.ones(1, 3), False),
        (torch.ones(2, 3, 3), False),
        (torch.ones(2, 4, 4), True),
        (torch.ones(3, 3, 3), True),
    ],
)
def test_a_part_of_the_wrong_shape_is_named(values: Tensor, pairwise: bool) -> None:
    term = priced(values) if pairwise else scored(values)
    with pytest.raises(SignalError) as caught:
        combine([term], bare(2, 3), pairwise=pairwise)
    assert str(caught.value) == f"{term.part.name} returned shape {list(values.shape)} for B=2, N=3"


def test_a_unary_cost_that_returns_pairs_is_named() -> None:
    from fixed_parts import FixedUnaryCost

    with pytest.raises(SignalError, match="fixed_unary_cost returned shape"):
        combine([Weighted("u", FixedUnaryCost(torch.ones(1, 3, 3)))], bare(1, 3), pairwise=True)


def test_anchors_are_stacked_in_order_and_weighted() -> None:
    a, b = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    summands = [
        Weighted("a", FixedCost(a, strong=torch.tensor([[7.0]])), weight=2.0),
        Weighted("b", FixedCost(b.bfloat16(), strong=torch.tensor([[8.0, 9.0]])), weight=-1.0),
    ]
    out = combine_anchors(summands, bare(1, 2))
    assert out is not None and out.dtype == torch.float32
    assert out.tolist() == [[[2, 4], [-3, -4], [-5, -6]]]
    strength = anchor_strength(summands, bare(1, 2))
    assert strength is not None and strength.tolist() == [[7, 8, 9]]
    assert combine_anchors([], bare(1, 2)) is None


def test_anchor_strength_is_unknown_unless_every_summand_knows() -> None:
    known = Weighted("a", FixedCost(torch.ones(1, 1, 2), strong=torch.ones(1, 1)))
    silent = Weighted("b", FixedCost(torch.ones(1, 1, 2)))
    assert anchor_strength([known, silent], bare(1, 2)) is None
    assert anchor_strength([silent, known], bare(1, 2)) is None
    assert anchor_strength([silent], bare(1, 2)) is None
    assert anchor_strength([], bare(1, 2)) is None


def best(values: list[float], real: list[bool], k: int) -> list[bool]:
    order = sorted((i for i in range(len(values)) if real[i]), key=lambda i: (-values[i], i))[:k]
    return [i in order for i in range(len(values))]


@pytest.mark.parametrize("pad", [-9.0, 1.0, 9.0])
def test_keep_top_takes_the_largest_real_entries_and_the_lower_index_at_ties(pad: float) -> None:
    values = [[1.0, 2.0, 1.0, 2.0, 0.0, 1.0], [-1.0, -1.0, -3.0, -2.0, -1.0, -2.0]]
    masks = [[T, F, T, T, T, T], [F, T, T, T, T, F]]
    for k in ([1, 4], [2, 3], [5, 2], [3, 1]):
        given = torch.tensor(values).masked_fill(~torch.tensor(masks), pad)
        out = keep_top(given, torch.tensor(k), mask=torch.tensor(masks))
        assert out.tolist() == [best(*row) for row in zip(values, masks, k, strict=True)]


def test_keep_top_never_keeps_padding_even_when_k_is_too_large_or_scores_are_minus_infinity() -> None:
    mask = torch.tensor([[F, T, T, F]])
    values = torch.tensor([[5.0, -torch.inf, 1.0, 5.0]])
    assert keep_top(values, torch.tensor([4]), mask=mask).tolist() == mask.tolist()
    assert keep_top(values, torch.tensor([1]), mask=mask).tolist() == [[F, F, T, F]]


def test_a_ridge_is_added_where_the_kernel_lives() -> None:
    values = torch.ones(1, 3, 3, dtype=torch.float64, device="meta")
    spec = ProblemSpec("log_det", pairwise=(Weighted("k", FixedKernel(values)),), ridge=0.5)
    out = combine_pairs(spec, bare(1, 3))
    assert out is not None and out.device.type == "meta" and out.dtype == torch.float64
    assert combine_pairs(ProblemSpec("max_min"), bare(1, 3)) is None


def test_results_stay_on_the_device_of_their_inputs() -> None:
    """The meta device stands in for a GPU: it has shapes and places, but no values."""
    mask = torch.ones(2, 4, dtype=torch.bool, device="meta")
    out = keep_top(
        torch.ones(2, 4, device="meta"), torch.ones(2, dtype=torch.int64, device="meta"), mask=mask
    )
    assert out.device.type == "meta"


def protected(protect: Protect, k: list[int], unary: Tensor) -> list[int]:
    out = protected_tokens(protect, bare(len(k), 10), k=torch.tensor(k), unary=unary)
    return out.sum(1).tolist()


@pytest.mark.parametrize(
    ("share", "rounding", "k", "count"),
    [
        (0.5, "floor", 5, 2),
        (0.5, "ceil", 5, 3),
        (0.5, "round", 5, 2),
        (0.5, "round", 7, 4),
        (0.3, "floor", 10, 3),
        (0.1 + 0.2, "ceil", 10, 3),
        (0.7, "floor", 10, 7),
        (0.26, "round", 10, 3),
        (0.26, "floor", 10, 2),
        (0.24, "ceil", 10, 3),
        (0.0, "floor", 10, 0),
        (1.0, "floor", 9, 9),
    ],
)
def test_a_protected_share_is_rounded_as_said(share: float, rounding: str, k: int, count: int) -> None:
    assert protected(Protect(share, None, rounding), [k], torch.rand(1, 10)) == [count]


def test_a_protected_count_never_exceeds_the_budget_and_the_best_are_protected() -> None:
    ranks = torch.tensor([[3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3], [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0]])
    assert protected(Protect(count=4), [3, 8], ranks) == [3, 4]
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 5] = mask[1, :2] = F
    out = protected_tokens(Protect(count=2), bare(2, 10, mask), k=torch.tensor([6, 6]), unary=ranks)
    assert [row.nonzero().squeeze(1).tolist() for row in out] == [[4, 7], [2, 3]]


def test_protect_ranks_by_its_own_scores_first() -> None:
    own = scored(torch.arange(10.0)[None], 2.0)
    unary = -torch.arange(10.0)[None]
    out = protected_tokens(Protect(count=1, scores=(own,)), bare(1, 10), k=torch.tensor([4]), unary=unary)
    assert out.nonzero().tolist() == [[0, 9]]
    with pytest.raises(SpecError) as caught:
        off = scored(torch.ones(1, 10), 0)
        protected_tokens(Protect(count=1, scores=(off,)), bare(1, 10), k=torch.tensor([4]), unary=None)
    assert str(caught.value) == "problem.protect ranks by scores, but every score has weight 0"


def test_protect_where_takes_the_real_tokens_above_zero_and_refuses_more_than_the_budget() -> None:
    values = torch.tensor([[1.0, 0.0, -1.0, 2.0], [0.5, 0.5, 0.5, -0.5]])
    mask = torch.tensor([[T, T, T, F], [T, T, T, T]])
    part = FixedScore(values)
    signals = bare(2, 4, mask, xy=torch.zeros(2, 4, 2))
    out = protected_tokens(Protect(where=part), signals, k=torch.tensor([1, 3]), unary=None)
    assert out.tolist() == [[T, F, F, F], [T, T, T, F]] and list(part.seen[0]) == ["features"]
    with pytest.raises(ProblemError) as caught:
        protected_tokens(Protect(where=part), signals, k=torch.tensor([1, 2]), unary=None)
    assert str(caught.value) == (
        "problem.protect.where (fixed_score) keeps 3 tokens of problem 1, but the budget is 2; "
        "keep more, or cut again in a second stage"
    )


def largest_remainder(sizes: list[int], k: int) -> list[int]:
    exact = [size / sum(sizes) * k for size in sizes]
    base = [math.floor(e) for e in exact]
    order = sorted(range(len(sizes)), key=lambda i: (base[i] - exact[i], i))
    for i in order[: k - sum(base)]:
        base[i] += 1
    return base


def test_quotas_ignore_padding_and_ties_go_to_the_lower_group() -> None:
    group = torch.tensor(
        [
            [0, 0, 1, 1, 2, 2, 2, 2],
            [2, 2, 2, 1, 0, 1, 1, -1],
            [0, 1, 2, 0, 1, 2, 0, 1],
            [0, 0, 0, 0, 1, 2, 2, 2],
        ]
    )
    mask = torch.tensor(
        [[T] * 8, [T, T, F, T, T, T, F, F], [T, T, T, T, T, T, F, F], [F, T, F, F, T, T, T, T]]
    )
    sizes = [[2, 2, 4], [1, 2, 2], [2, 2, 2], [1, 1, 3]]
    for k in range(1, 6):
        back, quota = equal_quotas(group, mask, k=torch.tensor([k] * 4))
        assert back is group and quota.dtype == torch.int64
        assert quota.tolist() == [largest_remainder(s, k) for s in sizes]
    _, tie = equal_quotas(group[2:3], mask[2:3], k=torch.tensor([4]))
    assert tie.tolist() == [[2, 1, 1]]


def test_the_transport_problem_of_a_spec_has_its_cost_marginals_and_mask() -> None:
    cost = torch.arange(18.0).view(2, 3, 3)
    mask = torch.tensor([[T, T, F], [T, T, T]])
    a = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    b = torch.tensor([[0.5, 0.5, 0.0], [0.125, 0.375, 0.5]])
    source, target = FixedMarginal(a), FixedMarginal(b)
    spec = ProblemSpec("transport", (priced(cost, 2.0),), source=source, target=target)
    problem = transport_problem(spec, bare(2, 3, mask))
    assert torch.equal(problem.a, a) and torch.equal(problem.b, b)
    assert torch.equal(problem.row_mask, mask) and torch.equal(problem.col_mask, mask)
    real = mask[:, :, None] & mask[:, None, :]
    assert torch.equal(problem.cost, (2 * cost).masked_fill(~real, 0))
    for view in (*source.seen, *target.seen):
        assert list(view) == ["features"]
    whole = transport_problem(spec, bare(2, 3))
    assert whole.row_mask is None and whole.col_mask is None


def test_the_transport_problem_is_checked_unless_told_otherwise() -> None:
    half = torch.full((1, 2), 0.5)
    sides = {"source": FixedMarginal(half), "target": FixedMarginal(half)}
    spec = ProblemSpec("transport", (priced(torch.full((1, 2, 2), torch.nan)),), **sides)
    with pytest.raises(ProblemError, match="not finite in problem 0"):
        transport_problem(spec, bare(1, 2))
    assert transport_problem(spec, bare(1, 2), check=False).cost.isnan().all()
    off = ProblemSpec("transport", (priced(torch.ones(1, 2, 2), 0),), **sides)
    with pytest.raises(SpecError) as caught:
        transport_problem(off, bare(1, 2))
    assert str(caught.value) == "every summand has weight 0; give at least one a weight"


def test_fixed_scores_are_called_once_each() -> None:
    term = Weighted("s", FixedScore(torch.ones(1, 3)))
    combine([term], bare(1, 3), pairwise=False)
    assert len(term.part.seen) == 1


@pytest.mark.parametrize("spec", [
    ProblemSpec("max_min", pairwise=(Weighted("c", CosineDistance()),), symmetric="mean"),
    ProblemSpec("log_det", pairwise=(Weighted("k", CosineKernel()),), ridge=0.25),
    ProblemSpec("facility_location", (Weighted("c", CosineDistance(), 2.0),)),
], ids=["mean", "ridge", "cost"])  # fmt: skip
def test_pairs_are_stated_by_rows_to_who_reads_rows_and_where_a_matrix_is_large(
    spec: ProblemSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals, k = bare(2, 5, features=torch.randn(2, 5, 3)), torch.tensor([2, 2])
    matrix = combine_pairs(spec, signals)
    for limit, rows in ((0, True), (0, False), (2**30, True), (2**30, False)):
        monkeypatch.setattr(unstored, "WHOLE", limit)
        found = subset_problem(spec, signals, k=k, rows=rows).pairwise
        assert isinstance(found, unstored.Unstored) == (rows and limit == 0)
        torch.testing.assert_close(found + 0, matrix)


def test_a_subset_problem_is_checked_unless_told_otherwise() -> None:
    spec, k = ProblemSpec("top_k", scores=(scored(torch.tensor([[1.0, math.nan, 2.0]])),)), torch.tensor([2])
    with pytest.raises(ProblemError, match="NaN"):
        subset_problem(spec, bare(1, 3), k=k)
    assert subset_problem(spec, bare(1, 3), k=k, check=False).unary is not None
