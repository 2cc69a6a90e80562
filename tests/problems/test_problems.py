"""Problems: what is accepted, what becomes of it, and every refusal with its argument and its sample."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from pruneopt.errors import ProblemError, SpecError
from pruneopt.problems.budget import Budget
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

T, F = True, False


def words(error: type[Exception], call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args, **more)
    return str(caught.value)


def bits(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows).bool()


# transport

COST = torch.arange(12.0).view(2, 2, 3)


def transport(**more: Any) -> TransportProblem:
    return TransportProblem.build(**{"cost": COST, **more})


def refused(**more: Any) -> str:
    return words(ProblemError, transport, **more)


def test_uniform_marginals_are_filled_in_over_real_entries() -> None:
    plain = transport()
    assert plain.a.tolist() == [[0.5, 0.5]] * 2 and plain.b.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    assert plain.row_mask is None and plain.col_mask is None and plain.pair_mask is None
    rows, cols = bits([[1, 0], [1, 1]]), bits([[1, 1, 1], [0, 1, 1]])
    masked = transport(row_mask=rows, col_mask=cols)
    assert masked.a.tolist() == [[1, 0], [0.5, 0.5]]
    assert masked.b[1].tolist() == [0, 0.5, 0.5]
    assert masked.row_mask is rows and masked.col_mask is cols
    for one in (transport(row_mask=rows), transport(col_mask=cols)):
        assert (one.row_mask is None) != (one.col_mask is None)


def test_costs_of_masked_pairs_are_zero_and_the_rest_is_untouched() -> None:
    rows, cols = bits([[1, 0], [1, 1]]), bits([[1, 1, 1], [0, 1, 1]])
    spoiled = COST.clone()
    spoiled[0, 1], spoiled[1, :, 0] = torch.nan, torch.inf
    for r, c in ((rows, cols), (rows, None), (None, cols)):
        real = torch.ones(2, 2, 3, dtype=torch.bool)
        real = real & (rows[:, :, None] if r is not None else T) & (cols[:, None, :] if c is not None else T)
        given = torch.where(real, COST, spoiled)
        problem = transport(cost=given, row_mask=r, col_mask=c)
        assert torch.equal(problem.cost, torch.where(real, COST, 0))
        assert torch.equal(problem.pair_mask, real)


def test_the_span_and_range_of_costs_look_at_real_pairs_only() -> None:
    cost = torch.tensor([[[-99.0, 2.0, 99.0], [4.0, 7.0, -50.0]], [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]])
    rows, cols = bits([[1, 1], [1, 1]]), bits([[0, 1, 0], [1, 1, 1]])
    problem = TransportProblem(cost, torch.ones(2, 2) / 2, torch.ones(2, 3) / 3, rows, cols)
    low, high = problem.span()
    assert low.tolist() == [2, 3] and high.tolist() == [7, 3]
    assert problem.cost_range().tolist() == [5, 1]  # a constant cost has range 1
    whole = TransportProblem(cost, problem.a, problem.b)
    assert [x.tolist() for x in whole.span()] == [[-99, 3], [99, 3]]
    assert whole.cost_range().tolist() == [198, 1]
    tiny = TransportProblem(cost * 1e-12, problem.a, problem.b)
    assert tiny.cost_range()[0] == pytest.approx(198e-12)


def test_half_precision_becomes_float32_and_marginals_follow_the_cost() -> None:
    for given, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        problem = transport(cost=COST.to(given), a=torch.tensor([[0.25, 0.75]] * 2, dtype=torch.float64))
        assert problem.cost.dtype == problem.a.dtype == problem.b.dtype == wanted
        assert torch.equal(problem.cost, COST.to(wanted))


def test_masses_near_one_are_renormalised_in_float64() -> None:
    a = torch.tensor([[0.25, 0.75], [0.500045, 0.500045]])
    problem = transport(cost=COST.double(), a=a)
    exact = [[float(v) / sum(map(float, row)) for v in row] for row in a.double().tolist()]
    assert problem.a.tolist() == [pytest.approx(row, abs=1e-15) for row in exact]
    rows = bits([[1, 0], [1, 1]])
    kept = transport(a=torch.tensor([[1.0, 5.0], [0.5, 0.5]]), row_mask=rows)
    assert kept.a.tolist() == [[1, 0], [0.5, 0.5]]
    half = transport(a=torch.tensor([[0.2502, 0.7505], [0.5, 0.5]], dtype=torch.bfloat16))
    assert half.a.sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["a", "b"])
def test_masses_are_refused_by_name_and_problem(name: str) -> None:
    n = 2 if name == "a" else 3
    good = torch.full((2, n), 1 / n)
    assert refused(**{name: good[:1]}) == f"{name} must have shape [2, {n}], got [1, {n}]"
    assert refused(**{name: good[:, 1:]}) == f"{name} must have shape [2, {n}], got [2, {n - 1}]"
    whole = torch.ones(2, n, dtype=torch.int64)
    assert refused(**{name: whole}) == f"{name} must be floating point, got torch.int64"
    for bad in (-0.01, math.nan, math.inf):
        mass = good.clone()
        mass[1, n - 1] = bad
        assert refused(**{name: mass}) == f"{name} has a negative or non-finite entry in problem 1"
        assert transport(**{name: mass}, check=False).cost is not None
    for factor, text in ((1.001, "1.001"), (0.999, "0.999"), (2.0, "2")):
        mass = good.clone()
        mass[1] *= factor
        said = f"{name} sums to {text} in problem 1, not to 1; divide it by its sum"
        assert refused(**{name: mass}) == said
        assert refused(**{name: mass.flip(0)}) == said.replace("problem 1", "problem 0")
    for factor in (1.00009, 0.99991):
        transport(**{name: good * factor})
    zero = good.clone()
    zero[:, 0], zero[:, -1] = 0, zero[:, 0] + zero[:, -1]
    assert getattr(transport(**{name: zero}), name)[0, 0] == 0  # an atom may be empty


def test_the_tolerance_of_half_precision_masses_is_wider_and_ends() -> None:
    for given, fine in (([0.5, 0.4992], T), ([0.5, 0.498], F)):
        mass = torch.tensor([given, [0.5, 0.5]], dtype=torch.float16)
        if fine:
            transport(a=mass)
            assert refused(a=mass.float()).startswith("a sums to 0.99")
        else:
            assert refused(a=mass).startswith("a sums to 0.99")


def test_costs_are_refused_by_shape_dtype_and_problem() -> None:
    assert refused(cost=COST[0]) == "cost has shape [N,M]; add a batch axis: cost[None]"
    said = "cost must be floating point [B,N,M], got "
    assert refused(cost=COST[None]) == said + "torch.float32 [1, 2, 2, 3]"
    assert refused(cost=COST.long()) == said + "torch.int64 [2, 2, 3]"
    assert refused(cost=COST[:, :0]) == "cost is empty: shape [2, 0, 3]"
    for bad in (math.nan, math.inf, -math.inf):
        cost = COST.clone()
        cost[1, 1, 2] = bad
        assert refused(cost=cost) == (
            "cost is not finite in problem 1; look for NaN or infinity in the signals, "
            "or mask forbidden pairs with a finite cost"
        )
        assert transport(cost=cost, check=False).cost[1, 1, 2].isfinite().item() is False
    wide = COST.clone()
    wide[1, 0, 0], wide[1, 1, 1] = 3e38, -3e38
    assert refused(cost=wide) == (
        "cost spans more than torch.float32 holds in problem 1: highest minus lowest overflows; "
        "give forbidden pairs a cost of about 10 times the range of the others"
    )
    assert transport(cost=wide, check=False).cost_range()[1] == math.inf


def test_masks_are_refused_by_name_shape_dtype_and_emptiness() -> None:
    good = bits([[1, 1], [1, 1]])
    assert refused(row_mask=good[:1]) == "row_mask must be bool [2, 2], got torch.bool [1, 2]"
    assert refused(row_mask=good.long()) == "row_mask must be bool [2, 2], got torch.int64 [2, 2]"
    assert refused(col_mask=good) == "col_mask must be bool [2, 3], got torch.bool [2, 2]"
    for name, n in (("row", 2), ("col", 3)):
        empty = torch.ones(2, n, dtype=torch.bool)
        empty[1] = False
        assert refused(**{f"{name}_mask": empty}) == (
            f"{name}_mask is False everywhere in problem 1: there is nothing to move; "
            "leave such samples out of the batch"
        )
        transport(**{f"{name}_mask": empty}, check=False)


def test_a_detached_problem_is_the_same_without_gradients() -> None:
    cost = COST.clone().requires_grad_()
    rows, cols = bits([[1, 0], [1, 1]]), bits([[1, 1, 1], [0, 1, 1]])
    problem = transport(cost=cost, row_mask=rows, col_mask=cols)
    assert problem.inputs == (problem.cost, problem.a, problem.b) and problem.cost.requires_grad
    free = problem.detached()
    assert not free.cost.requires_grad
    for name in ("cost", "a", "b", "row_mask", "col_mask"):
        assert torch.equal(getattr(free, name), getattr(problem, name))


# subsets

UNARY = torch.tensor([[3.0, 1.0, 2.0, 5.0], [1.0, 4.0, 2.0, 0.0]])
PAIR = torch.stack([torch.eye(4) * 2 + 1, torch.eye(4) * 3 + 1])
GROUP = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
QUOTA = torch.tensor([[1, 1], [0, 2]])
KINDS = tuple(registry("kinds"))
NEEDS: dict[str, dict[str, Any]] = {
    "top_k": {"unary": UNARY},
    "max_min": {"pairwise": PAIR},
    "max_sum": {"pairwise": PAIR},
    "k_center": {"pairwise": PAIR},
    "facility_location": {"pairwise": PAIR},
    "log_det": {"pairwise": PAIR},
    "independent_set": {"unary": UNARY, "pairwise": PAIR, "threshold": 0.5},
    "quota": {"unary": UNARY, "group": GROUP, "quota": QUOTA},
}


def subset(kind: str = "top_k", k: Any = 2, **more: Any) -> SubsetProblem:
    return SubsetProblem.build(kind, k, **{**NEEDS.get(kind, {}), **more})


def no(kind: str = "top_k", k: Any = 2, **more: Any) -> str:
    return words(ProblemError, subset, kind, k, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_from_what_it_needs_and_from_nothing_less(kind: str) -> None:
    problem = subset(kind)
    assert (problem.kind, problem.shape, problem.k.tolist(), problem.counts) == (kind, (2, 4), [2, 2], (2, 2))
    assert problem.rules.symmetric == (kind in ("max_min", "max_sum", "log_det", "independent_set"))
    for name in ("unary", "pairwise", "group", "quota", "threshold"):
        given = NEEDS[kind].get(name)
        found = getattr(problem, name)
        assert found is None if given is None else torch.equal(torch.as_tensor(found), torch.as_tensor(given))
    said = {
        "unary": f"{kind} needs scores [B,N]",
        "pairwise": f"{kind} needs a pairwise matrix [B,N,N]; give it a cost or a kernel",
        "threshold": "independent_set needs a conflict threshold, got None",
        "group": "quota needs group [B,N] and quota [B,G]",
        "quota": "quota needs group [B,N] and quota [B,G]",
    }
    for name in NEEDS[kind]:
        extra = {"pairwise": PAIR} if name == "unary" else {"unary": UNARY}
        assert no(kind, **{**extra, name: None}) == said[name]
    assert (
        no(kind, unary=None, pairwise=None)
        == f"{kind} needs scores (unary) or a pairwise matrix; neither was given"
    )


def test_unknown_kinds_and_thresholds_that_are_nan() -> None:
    assert no("topk", unary=UNARY) == f"unknown subset problem 'topk'; known: {', '.join(KINDS)}"
    assert no("independent_set", threshold=math.nan) == "independent_set needs a conflict threshold, got nan"
    assert subset("independent_set", threshold=0.0).threshold == 0.0


def test_everything_given_is_kept() -> None:
    anchors, strong = torch.rand(2, 3, 4), torch.rand(2, 3)
    mask, protected = bits([[1, 1, 1, 0], [1, 1, 1, 1]]), bits([[1, 0, 0, 0], [0, 0, 1, 0]])
    k = torch.tensor([2, 3])
    problem = subset(
        "max_min", k, unary=UNARY, mask=mask, protected=protected, anchors=anchors,
        anchor_strength=strong, counts=(2, 3),
    )  # fmt: skip
    assert problem.unary is UNARY and problem.pairwise is PAIR and problem.k is k
    assert problem.mask is mask and problem.real is mask and problem.protected is protected
    assert problem.anchors is anchors and problem.anchor_strength is strong
    assert problem.counts == (2, 3) and problem.most == 3
    unknown = subset("max_min", k)
    assert unknown.counts is None and unknown.most == 3
    assert unknown.real.tolist() == [[T] * 4] * 2 and unknown.mask is None


def test_half_precision_is_promoted_and_float64_stays() -> None:
    for given, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64,) * 2,
    ):
        problem = subset(
            "max_min", unary=UNARY.to(given), pairwise=PAIR.to(given), anchors=torch.ones(2, 1, 4).to(given)
        )
        for tensor in (problem.unary, problem.pairwise, problem.anchors):
            assert tensor is not None and tensor.dtype == wanted


SHAPES: list[tuple[str, str, Tensor, str]] = [
    ("max_min", "pairwise", torch.ones(2, 4, 3), "[2, 4, 4], got [2, 4, 3]"),
    ("max_min", "mask", bits([[1, 1, 1, 1]]), "[2, 4], got [1, 4]"),
    ("max_min", "protected", bits([[1, 1], [1, 1]]), "[2, 4], got [2, 2]"),
    ("quota", "group", GROUP[:1], "[2, 4], got [1, 4]"),
    ("max_min", "anchor_strength", torch.ones(2, 2), "[2, 0], got [2, 2]"),
]


@pytest.mark.parametrize(("kind", "name", "tensor", "said"), SHAPES)
def test_wrong_shapes_are_named(kind: str, name: str, tensor: Tensor, said: str) -> None:
    assert no(kind, **{"unary": UNARY, name: tensor}) == f"{name} must have shape {said}"


def test_the_scores_say_what_the_other_shapes_must_be() -> None:
    assert no("max_min", unary=torch.ones(2, 3)) == "pairwise must have shape [2, 3, 3], got [2, 4, 4]"
    assert no(unary=torch.ones(2, 4, 1)) == "unary must have shape [2, 4], got [2, 4, 1]"


def test_wrong_shapes_of_anchors_and_quotas_are_named() -> None:
    for bad in (torch.ones(2, 4), torch.ones(1, 3, 4), torch.ones(2, 3, 5)):
        assert no("max_min", anchors=bad) == f"anchors must have shape [2, A, 4], got {list(bad.shape)}"
    said = "anchor_strength must have shape [2, 3], got [2, 2]"
    assert no("max_min", anchors=torch.ones(2, 3, 4), anchor_strength=torch.ones(2, 2)) == said
    for bad in (torch.ones(2, dtype=torch.int64), QUOTA[:1]):
        assert no("quota", quota=bad) == f"quota must have shape [2, G], got {list(bad.shape)}"
    for kind in set(KINDS) - {"k_center", "max_min", "max_sum", "facility_location"}:
        said = f"anchors have no meaning for {kind}; they count as chosen in k_center, max_min, max_sum"
        assert no(kind, anchors=torch.ones(2, 1, 4)) == said
    for kind in ("k_center", "max_min", "max_sum"):
        assert subset(kind, anchors=torch.ones(2, 0, 4)).anchors is not None


def test_wrong_dtypes_are_named() -> None:
    assert no(unary=UNARY.long()) == "unary must be floating point, got torch.int64"
    assert no("max_min", pairwise=PAIR.long()) == "pairwise must be floating point, got torch.int64"
    said = "anchors must be floating point, got torch.int64"
    assert no("max_min", anchors=torch.ones(2, 1, 4).long()) == said
    whole = torch.ones(2, 4, dtype=torch.int64)
    for name in ("mask", "protected"):
        assert no(**{name: whole}) == f"{name} must be torch.bool, got torch.int64"
    assert no("quota", group=GROUP.int()) == "group must be torch.int64, got torch.int32"
    assert no("quota", quota=QUOTA.float()) == "quota must be torch.int64, got torch.float32"
    for k, said in (
        (torch.tensor([2.0, 2.0]), "torch.float32 [2]"),
        (torch.tensor([2]), "torch.int64 [1]"),
        (torch.tensor([[2, 2]]), "torch.int64 [1, 2]"),
    ):
        assert no(k=k) == f"k must be whole numbers of shape [2], got {said}"


MASK = bits([[1, 1, 1, 1], [0, 1, 1, 0]])


def test_counts_beyond_the_real_tokens_are_refused_with_the_sample() -> None:
    assert no(k=torch.tensor([2, 3]), mask=MASK) == "cannot choose 3 of 2 tokens in sample 1"
    assert no(k=torch.tensor([0, 2])) == "cannot choose 0 of 4 tokens in sample 0"
    assert no(k=5) == "cannot choose 5 of 4 tokens in sample 0"
    assert subset(k=torch.tensor([4, 2]), mask=MASK).most == 4
    assert subset(k=torch.tensor([1, 1])).most == 1
    assert subset(k=9, check=False).counts == (9, 9)
    said = "counts [2, 1] are not k [2, 2]; leave them out or agree"
    assert no(k=torch.tensor([2, 2]), counts=(2, 1)) == said


def test_protected_tokens_must_be_real_and_fit_the_budget() -> None:
    many = bits([[0, 1, 0, 1], [0, 1, 1, 0]])
    assert subset(mask=MASK, protected=many).protected is many
    assert no(k=torch.tensor([2, 1]), protected=many) == "sample 1 protects 2 tokens but the budget is 1"
    padded = bits([[0, 1, 0, 1], [1, 0, 0, 0]])
    assert no(mask=MASK, protected=padded) == "protected marks padding in sample 1; protect real tokens only"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_bad_values_are_found_at_every_real_place_and_nowhere_else(bad: float, masked: bool) -> None:
    mask = MASK if masked else None
    k = torch.tensor([2, 1])
    for sample, i in itertools.product(range(2), range(4)):
        unary = UNARY.clone()
        unary[sample, i] = bad
        if mask is None or mask[sample, i]:
            said = f"unary is not finite in sample {sample}; look for NaN or infinity in the signals"
            assert no(k=k, unary=unary, mask=mask) == said
        else:
            subset(k=k, unary=unary, mask=mask)
        assert subset(k=k, unary=unary, mask=mask, check=False).unary is unary
        for j in range(4):
            pairwise = PAIR.clone()
            pairwise[sample, i, j] = bad
            if mask is None or (mask[sample, i] and mask[sample, j]):
                said = f"pairwise is not finite in sample {sample}; look for NaN or infinity in the signals"
                assert no("facility_location", k, pairwise=pairwise, mask=mask) == said
            else:
                subset("facility_location", k, pairwise=pairwise, mask=mask)


def test_anchors_may_be_absent_but_not_broken() -> None:
    anchors = torch.ones(2, 3, 4)
    anchors[:, 1] = math.inf
    assert subset("max_min", anchors=anchors).anchors is anchors
    for bad, sample, i in itertools.product((math.nan, -math.inf), range(2), range(4)):
        broken = anchors.clone()
        broken[sample, 2, i] = bad
        said = f"anchors hold NaN or -infinity in sample {sample}; an absent anchor is a row of +infinity"
        assert no("max_min", anchors=broken) == said
        if not MASK[sample, i]:
            subset("max_min", torch.tensor([2, 1]), anchors=broken, mask=MASK)
    alone = torch.full((2, 1, 4), math.nan)
    assert no("max_min", anchors=alone).startswith("anchors hold NaN or -infinity in sample 0")
    torn = anchors.clone()
    torn[1, 0, 1] = math.inf
    assert no("max_min", anchors=torn) == (
        "anchors hold a row with some +infinity in sample 1; only a whole row may be +infinity, "
        "and is then absent"
    )
    torn[1, 0] = torch.tensor([math.inf, 1.0, 1.0, math.inf])  # +infinity at padding only
    subset("max_min", torch.tensor([2, 1]), anchors=torn, mask=MASK)
    torn[1, 0] = torch.tensor([1.0, math.inf, math.inf, 1.0])  # absent at all real tokens
    subset("max_min", torch.tensor([2, 1]), anchors=torn, mask=MASK)
    strong = torch.ones(2, 3)
    strong[1, 2] = math.nan
    said = "anchor_strength is NaN in sample 1"
    assert no("max_min", anchors=anchors, anchor_strength=strong) == said


@pytest.mark.parametrize("kind", ["max_min", "max_sum", "log_det", "independent_set"])
def test_pairs_must_be_symmetric_up_to_rounding_among_real_tokens(kind: str) -> None:
    for size, fine in ((0.9e-5, T), (1.1e-5, F)):
        skew = PAIR.clone()
        skew[1, 1, 2] += size * 4  # the largest entry of sample 1 is 4
        if fine:
            subset(kind, pairwise=skew)
            continue
        assert no(kind, pairwise=skew) == (
            "pairwise of sample 1 is not symmetric: the two directions of a pair differ by 1.1e-05 of the "
            f"largest entry, and {kind} knows unordered pairs only. Set problem.symmetric=mean in the spec, "
            "or pass (P + P.transpose(1, 2)) / 2"
        )
    skew = PAIR.clone()
    skew[1, 0, 2] = 50.0
    subset(kind, torch.tensor([2, 1]), pairwise=skew, mask=MASK)
    subset("facility_location", pairwise=skew)
    subset(kind, pairwise=skew, check=False)
    low = PAIR.bfloat16()
    low[1, 1, 2] = 1 + 16 * 2**-7  # four roundings of bfloat16, of the largest entry
    if kind != "log_det":
        subset(kind, pairwise=low)
    low[1, 1, 2] = 1 + 18 * 2**-7
    assert no(kind, pairwise=low).startswith("pairwise of sample 1 is not symmetric")


def test_a_kernel_must_be_positive_semi_definite_and_the_cure_is_said() -> None:
    kernel = torch.ones(2, 4, 4)
    subset("log_det", pairwise=kernel)  # singular is fine
    kernel[1] = torch.diag(torch.tensor([1.0, 2.0, -0.5, 3.0]))
    assert no("log_det", pairwise=kernel) == (
        "pairwise of sample 1 is no kernel: its smallest eigenvalue is -0.5, and log_det needs a positive "
        "semi-definite one. Set problem.ridge=0.505 or more in the spec, or add it to the diagonal"
    )
    subset("log_det", pairwise=kernel + 0.505 * torch.eye(4))
    subset("max_sum", pairwise=kernel)
    hidden = bits([[1, 1, 1, 1], [1, 1, 0, 1]])
    subset("log_det", pairwise=kernel, mask=hidden)
    # up to N roundings of the largest entry count as rounding: 4 * eps * 3 = 1.43e-6
    for least, fine in ((-1.2e-6, T), (-1.7e-6, F)):
        kernel[1] = torch.diag(torch.tensor([1.0, 2.0, least, 3.0]))
        if fine:
            subset("log_det", pairwise=kernel)
        else:
            assert no("log_det", pairwise=kernel).startswith("pairwise of sample 1 is no kernel")
    for size in (1e-12, 1e12):  # what counts as rounding grows and shrinks with the kernel
        kernel[1] = size * torch.diag(torch.tensor([1.0, 2.0, -0.5, 3.0]))
        assert no("log_det", pairwise=kernel).startswith("pairwise of sample 1 is no kernel")
    scaled = torch.diag(torch.tensor([1.0, 2.0, -1e-3, 3.0])).expand(2, 4, 4)
    subset("log_det", pairwise=scaled.bfloat16())  # as many roundings of bfloat16 are more
    subset("log_det", pairwise=torch.zeros(2, 4, 4))


def test_quotas_must_sum_to_k_and_fit_their_groups() -> None:
    for k in (torch.tensor([2, 2]), 2):
        assert subset("quota", k).quota is QUOTA
    assert no("quota", 3) == "quotas of sample 0 sum to 2, but k is 3"
    assert no("quota", torch.tensor([2, 1])) == "quotas of sample 1 sum to 2, but k is 1"
    for bad in (-1, 2):
        wrong = GROUP.clone()
        wrong[1, 3] = bad
        assert no("quota", group=wrong) == "group numbers of sample 1 are outside 0..1"
        subset("quota", group=wrong, mask=bits([[1, 1, 1, 1], [1, 1, 1, 0]]))
    negative = torch.tensor([[1, 1], [3, -1]])
    assert no("quota", quota=negative) == "quota of sample 1 is negative"
    said = "group 0 of sample 1 has only 1 tokens but its quota is 2"
    assert no("quota", quota=torch.tensor([[1, 1], [2, 0]])) == said
    subset("quota", quota=torch.tensor([[2, 0], [1, 1]]))
    said = "group 1 of sample 1 has only 1 tokens but its quota is 2"
    assert no("quota", mask=bits([[1, 1, 1, 1], [1, 1, 0, 0]])) == said
    one = torch.zeros(2, 4, dtype=torch.int64)
    subset("quota", group=one, quota=torch.tensor([[2, 0], [2, 0]]))  # the last group may be empty
    said = "group 1 of sample 0 has only 0 tokens but its quota is 1"
    assert no("quota", group=one, quota=torch.tensor([[1, 1], [1, 1]])) == said
    subset("quota", 2, group=one, quota=torch.tensor([[2], [2]]), mask=bits([[1, 1, 1, 0], [1, 1, 1, 1]]))
    subset("quota", protected=bits([[1, 0, 0, 1], [0, 1, 0, 1]]))
    said = "group 0 of sample 0 protects 2 tokens but its quota is 1"
    assert no("quota", protected=bits([[1, 1, 0, 0], [0, 1, 0, 1]])) == said
    said = "group 0 of sample 1 protects 1 tokens but its quota is 0"
    assert no("quota", protected=bits([[1, 0, 0, 0], [1, 0, 0, 0]])) == said


@pytest.mark.parametrize("name", ["cost", "a", "b", "row_mask", "col_mask"])
def test_what_is_no_tensor_is_refused_by_name_in_transport(name: str) -> None:
    assert refused(**{name: [[1.0]]}).startswith(f"{name} must be a torch tensor")


OTHERS = ["unary", "pairwise", "mask", "protected", "anchors", "group", "quota", "anchor_strength"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_tensor_is_refused_by_name_in_subsets(name: str) -> None:
    assert no("max_min", **{name: [[1.0]]}).startswith(f"{name} must be a torch tensor")


# budgets


def counted(keep: Any, rounding: str, base: int) -> int:
    """Exact arithmetic on the decimal that was written; half-way cases round to even."""
    if float(keep) > 1:
        return int(keep)
    exact = (Fraction(1, 3) if keep == 1 / 3 else Fraction(str(keep))) * base
    rule = {"round": round, "floor": math.floor, "ceil": math.ceil}[rounding]
    return max(1, rule(exact))


@pytest.mark.parametrize("rounding", ["round", "floor", "ceil"])
@pytest.mark.parametrize("relative", ["start", "current"])
def test_counts_are_those_of_exact_fractions(rounding: str, relative: str) -> None:
    for keep in (0.001, 0.1, 0.125, 0.25, 0.29, 1 / 3, 0.5, 0.7, 0.999, 1, 1.0, 2, 7.0, 64):
        budget = Budget(keep, rounding, relative_to=relative)
        for start, alive in itertools.product((1, 3, 10, 64, 100, 576), repeat=2):
            wanted = counted(keep, rounding, start if relative == "start" else alive)
            if wanted > alive:
                assert words(ProblemError, budget.count, start, alive) == (
                    f"budget.keep={keep} asks for {wanted} tokens where only {alive} are left; "
                    "lower it or give a ratio"
                )
            else:
                assert budget.count(start, alive) == wanted


@pytest.mark.parametrize(
    ("change", "said", "key"),
    [
        *(
            ({"keep": bad}, f"must be a ratio or a count, got {bad!r}", "keep")
            for bad in (True, "1", None, [1])
        ),
        *(
            ({"keep": bad}, f"must be above 0 (a ratio up to 1, or a count of tokens), got {bad}", "keep")
            for bad in (0, -1, -0.5, math.inf, math.nan, -math.inf)
        ),
        *(
            ({"keep": bad}, f"above 1 must be a whole count of tokens, got {bad}; ratios end at 1", "keep")
            for bad in (1.5, 2.25)
        ),
        ({"rounding": "up"}, "must be one of round, floor, ceil, got 'up'", "rounding"),
        ({"scope": "all"}, "must be one of group, sample, got 'all'", "scope"),
        ({"relative_to": "end"}, "must be one of start, current, got 'end'", "relative_to"),
    ],
)
def test_bad_budgets_are_refused_by_key(change: dict[str, Any], said: str, key: str) -> None:
    with pytest.raises(SpecError) as caught:
        Budget(**change)
    assert str(caught.value) == f"budget.{key} {said}" and caught.value.key == key


def test_a_budget_says_all_its_keys() -> None:
    given = {"keep": 3, "rounding": "ceil", "scope": "sample", "total": True, "relative_to": "current"}
    assert Budget(**given).to_spec() == given
    defaults = {"keep": 0.5, "rounding": "round", "scope": "group", "total": False, "relative_to": "start"}
    assert Budget().to_spec() == defaults
