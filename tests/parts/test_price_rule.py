"""The rule `one_price` through `pruneopt.select`: splits, limits, protected tokens, order, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pruneopt
from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts.budgets.one_price import MATES
from pruneopt.problems.allotment import Allotment
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Status
from pruneopt.problems.subset import SubsetProblem
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"scores": {"norm": "token_norm"}}, "stable_top_k"),
    "facility_location": ({"pairwise": {"alike": "cosine"}}, "lazy_greedy"),
    "log_det": ({"pairwise": {"alike": "cosine"}, "ridge": 0.5}, "greedy_log_det"),
}


def spec(
    kind: str, keep: float, *, scope: str = "group", problem: dict[str, Any] | None = None, **rule: Any
) -> Spec:
    terms, solver = PROBLEMS[kind]
    return load_spec(
        {
            "insertion": "post_encoder",
            "budget": {"keep": keep, "scope": scope, "rule": {"kind": "one_price", **rule}},
            "problem": {"kind": kind, **terms, **(problem or {})},
            "solver": solver,
        }
    )


def pictures(sizes: list[int], seed: int = 0, samples: int = 1) -> tuple[Signals, torch.Tensor]:
    """Parts that are worth different amounts: of another spread and another length each."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(samples):
        parts = []
        for size in sizes:
            width, centre = torch.rand(2, generator=g).tolist()
            part = centre + width * torch.randn(size, 5, generator=g)
            parts.append((0.2 + torch.rand(1, generator=g)) * part)
        rows.append(torch.cat(parts))
    group = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    return Signals({"features": torch.stack(rows)}), group.expand(samples, -1)


def select(made: Spec, found: tuple[Signals, torch.Tensor]) -> tuple[Selection, Allotment]:
    selection = pruneopt.select(made, found[0], groups=found[1])
    allotment = selection.evidence["budget.rule"]
    assert isinstance(allotment, Allotment)
    return selection, allotment


def optimum_of_splits(allotment: Allotment) -> float:
    """The best of all choices within floors and ceilings, by trying all of them; one budget."""
    problem, given = allotment.answer.problem, allotment.shares
    each = []
    for b in range(len(problem.k)):
        one, best = problem.sample(b), {}
        tokens = one.real[0].nonzero().squeeze(1).tolist()
        for k in range(int(given.low[b]), int(given.high[b]) + 1):
            keep = torch.zeros(len(list(combinations(tokens, k))), one.shape[1], dtype=torch.bool)
            for row, chosen in zip(keep, combinations(tokens, k), strict=True):
                row[list(chosen)] = True
            many = replace(one, k=torch.tensor([k]), counts=None).repeated(len(keep))
            best[k] = float(many.value(keep).max())
        each.append(best)
    splits = (s for s in product(*each) if sum(s) == int(given.total))
    return max(sum(best[k] for best, k in zip(each, split, strict=True)) for split in splits)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_above_the_bound_and_scores_reach_it(kind: str, seed: int) -> None:
    limits = ({}, {"floor": 2}, {"ceiling": 0.6}, {"floor": 2, "ceiling": 0.7})[seed]
    _, allotment = select(spec(kind, 0.45, **limits), pictures([7, 5, 6], seed))
    best, value = optimum_of_splits(allotment), float(allotment.value)
    assert allotment.no_bound == ""
    bound = float(allotment.upper_bound)
    assert value <= best + 1e-9 and bound >= best - 1e-9
    if kind == "top_k":
        assert math.isclose(value, best, rel_tol=1e-9) and math.isclose(bound, best, rel_tol=1e-9)
        assert allotment.status == (Status.OPTIMAL,)
    else:
        assert allotment.status == (Status.HEURISTIC,)
        assert value >= best - 0.2 * max(1, abs(best))


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_part_gets_what_its_solver_chooses_for_its_count(kind: str) -> None:
    made = spec(kind, 0.4)
    _, allotment = select(made, pictures([9, 6, 8], 3, samples=2))
    answer = allotment.answer
    again = made.stages[0].chooser.solve(answer.problem)
    assert torch.equal(again.keep, answer.keep)
    assert torch.equal(again.order, answer.order)
    assert answer.keep.sum(1).tolist() == list(allotment.counts) == list(answer.problem.counts)
    gains = [float(row[:k].nansum()) for row, k in zip(allotment.gains, allotment.counts, strict=True)]
    torch.testing.assert_close(answer.value, torch.tensor(gains, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_totals_are_those_of_equal_shares_and_values_no_less(kind: str) -> None:
    made = spec(kind, 0.3)
    plain = replace(made, stages=(replace(made.stages[0], rule=None),))
    found = pictures([11, 4, 9, 7], 1, samples=3)
    priced, allotment = select(made, found)
    equal = pruneopt.select(plain, found[0], groups=found[1])
    assert priced.counts == equal.counts == tuple(priced.keep.sum(1).tolist())
    assert (allotment.value >= allotment.shares.sums(equal.solution.value) - 1e-6).all()


def test_floor_and_ceiling_hold_and_meet_at_equal_shares() -> None:
    found = pictures([10, 10, 10], 5)
    free = select(spec("top_k", 0.4), found)[1]
    assert min(free.counts) < 3 and max(free.counts) > 5
    held = select(spec("top_k", 0.4, floor=3, ceiling=0.5), found)[1]
    assert sum(held.counts) == 12 and min(held.counts) == 3 and max(held.counts) == 5
    assert select(spec("top_k", 0.4, floor=4), found)[1].counts == (4, 4, 4)
    assert select(spec("top_k", 0.4, ceiling=0.4), found)[1].counts == (4, 4, 4)


def test_a_part_smaller_than_the_floor_keeps_all_of_it() -> None:
    assert select(spec("top_k", 0.5, floor=4, ceiling=0.5), pictures([3, 12, 12], 2))[1].counts[0] == 3


def test_protected_tokens_stay_and_count() -> None:
    problem = {"protect": {"count": 3, "scores": {"low": {"kind": "token_norm", "weight": -1}}}}
    _, allotment = select(spec("top_k", 0.4, problem=problem), pictures([10, 10, 10], 5))
    protected = allotment.answer.problem.protected
    assert protected.sum(1).tolist() == [3, 3, 3]
    assert bool((allotment.answer.keep | ~protected).all())
    assert min(allotment.counts) >= 3 and sum(allotment.counts) == 12
    assert math.isclose(float(allotment.value), float(allotment.upper_bound), rel_tol=1e-9)
    with pytest.raises(
        ProblemError, match="has 6 tokens, and floors and protected tokens are 9; protect fewer"
    ):
        select(spec("top_k", 0.2, problem=problem), pictures([10, 10, 10], 5))


def test_parts_may_be_ragged_and_numbered_with_holes() -> None:
    signals, group = pictures([8, 5, 7], 4, samples=2)
    mask = torch.rand(group.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    ragged = Signals({"features": signals["features"].masked_fill(~mask[:, :, None], math.nan)}, mask)
    made = spec("facility_location", 0.4)
    together = pruneopt.select(made, ragged, groups=3 * group)
    for b in range(2):
        alone = Signals({"features": signals["features"][b : b + 1, mask[b]]})
        own = pruneopt.select(made, alone, groups=group[b : b + 1, mask[b]])
        assert torch.equal(own.keep[0], together.keep[b, mask[b]])


def test_over_the_batch_one_price_holds_for_all_and_says_so() -> None:
    found = pictures([9, 6], 6, samples=3)
    alone, (together, allotment) = (
        select(spec("top_k", 0.4), found),
        select(spec("top_k", 0.4, over="batch"), found),
    )
    assert sum(together.counts) == sum(alone[0].counts)
    assert together.counts != alone[0].counts
    assert len(allotment.price) == 1 and len(alone[1].price) == 3
    assert float(allotment.value) > float(alone[1].value.sum())
    assert together.diagnostics == (MATES,) and alone[0].diagnostics == ()


def test_samples_are_the_parts_of_a_batch_where_the_budget_holds_per_sample() -> None:
    signals, _ = pictures([9], 6, samples=4)
    made = spec("top_k", 0.4, scope="sample", over="batch")
    selection = pruneopt.select(made, signals)
    assert sum(selection.counts) == 16 and len(set(selection.counts)) > 1
    assert selection.keep.sum(1).tolist() == list(selection.counts)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(PROBLEMS)), st.integers(0, 10**6), st.permutations(range(4)))
def test_in_any_order_the_parts_keep_the_same_tokens(kind: str, seed: int, order: list[int]) -> None:
    signals, _ = pictures([6, 6, 6, 6], seed)
    parts = signals["features"].view(4, 6, 5)
    group = torch.arange(24)[None] // 6
    made = spec(kind, 0.35)
    one = pruneopt.select(made, signals, groups=group).keep.view(4, 6)
    moved = Signals({"features": parts[order].reshape(1, 24, 5)})
    assert torch.equal(pruneopt.select(made, moved, groups=group).keep.view(4, 6), one[order])


@pytest.mark.parametrize("kind", PROBLEMS)
def test_of_twins_the_first_gets_the_odd_token(kind: str) -> None:
    """Either choice is worth the same; the multiset of counts does not depend on the order."""
    part = pictures([8], 3)[0]["features"][0]
    other = pictures([8], 9)[0]["features"][0]
    group = torch.arange(24)[None] // 8
    found = {}
    for name, parts in {"first": [part, part, other], "middle": [part, other, part]}.items():
        for keep in (3, 4):
            signals = Signals({"features": torch.cat(parts)[None]})
            found[name, keep] = select(spec(kind, keep), (signals, group))[1]
    for keep in (3, 4):
        first, middle = found["first", keep], found["middle", keep]
        assert sorted(first.counts) == sorted(middle.counts)
        assert 0 <= first.counts[0] - first.counts[1] <= 1
        assert first.counts == (middle.counts[0], middle.counts[2], middle.counts[1])
        torch.testing.assert_close(first.value, middle.value)


def test_transport_is_a_score_like_any_other() -> None:
    made = load_spec("topv", overrides=["insertion=post_encoder", "steps=[]"])
    data = made.to_spec()
    data["budget"] |= {"total": False, "rule": {"kind": "one_price"}}
    data["problem"]["cost"] = {"near": "spatial_gaussian"}
    data["problem"]["marginals"] = {"source": "uniform", "target": "uniform"}
    priced = load_spec(data)
    signals, group = pictures([8, 8], 2)
    xy = torch.stack([torch.arange(16) % 4, torch.arange(16) // 4 % 2], 1)[None].float()
    grid = torch.tensor([4, 2]).expand(1, 16, 2)
    found = Signals({"features": signals["features"], "xy": xy.long(), "grid": grid})
    selection = pruneopt.select(priced, found, groups=group)
    assert sum(selection.counts) == 8 and "budget.rule" in selection.evidence


REFUSED = {
    "rising gains": (
        {"problem": {"kind": "max_sum", "pairwise": {"far": "cosine_distance"}}, "solver": "greedy_max_sum"},
        "max_sum may be more than what those before it added.*facility_location, log_det, top_k",
    ),
    "a maximum": (
        {"problem": {"kind": "k_center", "pairwise": {"far": "feature_sq_l2"}}, "solver": "greedy_k_center"},
        "k_center may be more",
    ),
    "no nesting": ({"solver": "local_search"}, "local_search may choose other tokens.*such as lazy_greedy"),
    "nothing to share": ({"budget": {"scope": "sample"}}, "set budget.scope=group, or budget.rule.ov"),
    "a low ceiling": ({"budget": {"rule": {"kind": "one_price", "ceiling": 0.3}}}, "raise the ceiling"),
    "a protected share": (
        {"problem": {"protect": {"share": 0.5, "scores": {"norm": "token_norm"}}}}, "problem.protect.count",
    ),
    "counted steps": (
        {"budget": {"total": True}, "steps": [{"kind": "recover_every", "interval": 3}]},
        "what recover_every makes of them.*budget.total=false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_price_can_spend_is_refused_with_the_cure(case: str) -> None:
    base = spec("facility_location", 0.4).to_spec()
    changes, words = REFUSED[case]
    for key, value in changes.items():
        replaces = not isinstance(value, dict) or "kind" in value
        base[key] = value if replaces else {**base[key], **value}
    with pytest.raises(SpecError, match=words) as refused:
        load_spec(base)
    assert "one_price" in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"floor": 5}, "12 tokens for parts that must get 15 and may get 30; lower budget.rule.floor"),
        ({"ceiling": 0.35}, "12 tokens for parts that must get 3 and may get 9; raise budget.rule.ceiling"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        select(spec("top_k", 4, **rule), pictures([10, 10, 10]))


def test_steps_that_add_tokens_add_them_on_top() -> None:
    base = spec("top_k", 0.4).to_spec()
    base["steps"] = [{"kind": "recover_every", "interval": 3}]
    selection, allotment = select(load_spec(base), pictures([10, 10, 10], 5))
    added = sum(-(-(10 - k) // 3) for k in allotment.counts)
    assert selection.counts == (12 + added,) == tuple(selection.keep.sum(1).tolist())


def test_negative_weights_have_no_bound_and_say_why() -> None:
    _, allotment = select(spec("facility_location", 0.4), pictures([6, 6]))
    problem = allotment.answer.problem
    signed = replace(problem, unary=-torch.ones(problem.shape))
    broken = replace(allotment, answer=replace(allotment.answer, problem=signed))
    assert isinstance(signed, SubsetProblem)
    assert broken.upper_bound is None and broken.gap is None
    assert "negative weights" in broken.no_bound
