"""One price for many problems: against every split, at every scale, in every order."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from bound_cases import EVERY, TOKENS, draw, of_any_size
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneopt.problems.allotment import Shares
from pruneopt.problems.kinds import all_kinds, find_kind
from pruneopt.problems.kinds.top_k import TopK
from pruneopt.problems.subset import SubsetProblem

DRAWN = {"top_k": 3000, "facility_location": 3000, "log_det": 3000}
PARTS = 3  # problems that share a budget


def shares(low: list[int], high: list[int], total: list[int], pool: list[int] | None = None) -> Shares:
    pool = [0] * len(low) if pool is None else pool
    return Shares(*(torch.tensor(each) for each in (pool, total, low, high)))


def falling(count: int, width: int, seed: int) -> np.ndarray:
    """Gains `[count,width]` that never rise, of both signs, at scales from 1e-12 to 1e12."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-12, 12)
    return -np.sort(-rng.normal(size=(count, width)), axis=1) * scale


def best_split(gains: np.ndarray, low: list[int], high: list[int], total: int) -> float:
    ranges = [range(a, b + 1) for a, b in zip(low, high, strict=True)]
    splits = (split for split in product(*ranges) if sum(split) == total)
    return max(sum(row[:k].sum() for row, k in zip(gains, split, strict=True)) for split in splits)


def limits(rng: np.random.Generator, count: int, width: int) -> tuple[list[int], list[int], int]:
    low = rng.integers(1, width + 1, count)
    high = [int(rng.integers(least, width + 1)) for least in low]
    return low.tolist(), high, int(rng.integers(low.sum(), sum(high) + 1))


def test_no_split_is_better_and_the_price_parts_what_is_taken() -> None:
    rng = np.random.default_rng(1)
    for seed in range(400):
        count, width = int(rng.integers(1, 5)), int(rng.integers(1, 6))
        gains, (low, high, total) = falling(count, width, seed), limits(rng, count, width)
        found, price = shares(low, high, [total]).spend(torch.from_numpy(gains))
        split = found.tolist()
        assert sum(split) == total
        assert all(a <= k <= b for a, k, b in zip(low, split, high, strict=True)), (low, split, high)
        mine = sum(row[:k].sum() for row, k in zip(gains, split, strict=True))
        size = np.abs(gains).max()
        assert mine >= best_split(gains, low, high, total) - 1e-12 * size
        paid = [row[low[g] : split[g]] for g, row in enumerate(gains)]
        missed = [row[split[g] : high[g]] for g, row in enumerate(gains)]
        paid, missed = np.concatenate(paid), np.concatenate(missed)
        if len(paid):
            assert float(price) == paid.min()
        elif len(missed):
            assert float(price) == missed.max()
        assert (missed <= float(price)).all()


def test_budgets_do_not_touch_one_another() -> None:
    """Two budgets at once are each what they are alone, and their problems may stand mixed."""
    one, two = falling(3, 5, 0), falling(2, 5, 7)
    mixed = torch.from_numpy(np.stack([two[0], one[0], one[1], two[1], one[2]]))
    together = shares([1, 2, 1, 1, 1], [5, 5, 4, 4, 5], [9, 6], [1, 0, 0, 1, 0])
    counts, price = together.spend(mixed)
    first = shares([2, 1, 1], [5, 4, 5], [9]).spend(torch.from_numpy(one))
    second = shares([1, 1], [5, 4], [6]).spend(torch.from_numpy(two))
    assert counts[[1, 2, 4]].tolist() == first[0].tolist()
    assert counts[[0, 3]].tolist() == second[0].tolist()
    assert price.tolist() == [float(first[1]), float(second[1])]


def test_a_gain_counts_for_no_more_than_those_before_it() -> None:
    """Tokens are taken in their order while they are worth the price: a later bargain is not reached."""
    gains = torch.tensor([[5.0, 1.0, 9.0], [4.0, 3.0, 2.0]])
    counts, price = shares([1, 1], [3, 3], [4]).spend(gains)
    assert (counts.tolist(), price.tolist()) == ([1, 3], [2.0])


def test_what_floors_take_sets_no_price() -> None:
    gains = torch.tensor([[5.0, 1.0, 0.5], [4.0, 3.0, 2.0]])
    counts, price = shares([2, 1], [3, 3], [3]).spend(gains)
    assert (counts.tolist(), price.tolist()) == ([2, 1], [3.0])  # the best that was not paid for


def test_singular_tokens_come_last_but_the_budget_is_spent() -> None:
    gains = torch.tensor([[5.0, -math.inf, -math.inf], [4.0, -30.0, -math.inf]])
    counts, price = shares([1, 1], [3, 3], [5]).spend(gains)
    assert (counts.tolist(), price.tolist()) == ([3, 2], [-math.inf])


def test_of_equal_gains_earlier_tokens_come_first_then_lower_problems() -> None:
    gains = torch.tensor([[3.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0], [9.0, 2.0, 2.0, 2.0]])
    for total, wanted in ((4, [2, 1, 1]), (5, [2, 2, 1]), (6, [2, 2, 2]), (7, [3, 2, 2]), (11, [4, 4, 3])):
        assert shares([1] * 3, [4] * 3, [total]).spend(gains)[0].tolist() == wanted


@st.composite
def tied(draw_: st.DrawFn) -> tuple[np.ndarray, list[int], list[int], int, list[int]]:
    """Gains of a few values only, so that ties are everywhere, with limits and an order of the parts."""
    count, width = draw_(st.integers(2, 5)), draw_(st.integers(1, 5))
    rows = [draw_(st.lists(st.integers(0, 3), min_size=width, max_size=width)) for _ in range(count)]
    low = draw_(st.lists(st.integers(1, width), min_size=count, max_size=count))
    high = [draw_(st.integers(least, width)) for least in low]
    total = draw_(st.integers(sum(low), sum(high)))
    order = draw_(st.permutations(range(count)))
    return np.array([sorted(row, reverse=True) for row in rows], float), low, high, total, list(order)


@settings(max_examples=200, deadline=None)
@given(tied())
def test_the_order_of_the_parts_changes_no_value_and_no_price(case) -> None:
    """Ties may change the owner of a token, never the value; equal limits keep the multiset of counts."""
    gains, low, high, total, order = case
    for at_once in (False, True):
        if at_once:  # parts of equal limits
            low, high = [1] * len(low), [gains.shape[1]] * len(low)
            total = max(total, len(low))
        one, price = shares(low, high, [total]).spend(torch.from_numpy(gains))
        moved = shares([low[g] for g in order], [high[g] for g in order], [total])
        two, again = moved.spend(torch.from_numpy(gains[order]))
        assert float(price) == float(again)
        worth = [sum(row[:k].sum() for row, k in zip(gains, one.tolist(), strict=True))]
        worth.append(sum(row[:k].sum() for row, k in zip(gains[order], two.tolist(), strict=True)))
        assert worth[0] == worth[1]
        if at_once:
            assert sorted(one.tolist()) == sorted(two.tolist())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_in_any_order_the_parts_get_the_same(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    gains, (low, high, total) = falling(5, 6, seed), limits(rng, 5, 6)
    one = shares(low, high, [total]).spend(torch.from_numpy(gains))[0]
    moved = shares([low[g] for g in order], [high[g] for g in order], [total])
    assert moved.spend(torch.from_numpy(gains[order]))[0].tolist() == one[order].tolist()


@cache
def enumerated(kind: str) -> tuple[SubsetProblem, Tensor, Tensor]:
    """Random problems, the optimum of every count from 1 to 7 `[B,7]`, and a unit of rounding errors."""
    count = DRAWN[kind]
    if kind == "top_k":
        stated = draw("facility_location", count, seed=5)
        sign = torch.where(torch.rand(stated.shape, generator=torch.Generator().manual_seed(1)) < 0.3, -1, 1)
        problem = replace(stated, kind="top_k", pairwise=None, anchors=None, unary=stated.unary * sign)
        unary = problem.unary.masked_fill(~problem.real, 0)
        allowed = ~(EVERY[None] & ~problem.real[:, None]).any(2)
        allowed &= ~(problem.protected[:, None] & ~EVERY[None]).any(2)
        every = (unary @ EVERY.double().T).masked_fill(~allowed, -math.inf)
    else:
        problem = draw(kind, count, seed=5)
        every = of_any_size(problem)
    each = [every.masked_fill(EVERY.sum(1) != k, -math.inf).amax(1) for k in range(1, TOKENS + 1)]
    optima = torch.stack(each, 1)
    size = optima.masked_fill(optima == -math.inf, 0).abs().amax(1)
    return problem, optima, 1 + size if kind == "log_det" else size.clamp_min(1e-300)


@pytest.mark.parametrize("kind", DRAWN)
def test_no_count_has_an_optimum_above_its_bound(kind: str) -> None:
    problem, optima, unit = enumerated(kind)
    found = problem.rules.bounds(problem, first_k(problem))
    assert not isinstance(found, str)
    assert not found.isnan().any()
    above = torch.where(optima == -math.inf, 0.0, (found - optima) / unit[:, None])
    assert above.min() >= -1e-12
    assert above[optima > -math.inf].median() < {"top_k": 1e-12, "facility_location": 1e-9}.get(kind, 0.01)


def first_k(problem: SubsetProblem) -> Tensor:
    """The protected tokens and the first others, as many as asked for."""
    rank = problem.real.double() + problem.protected
    first = torch.arange(TOKENS) < problem.k[:, None]
    order = rank.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(problem.real).scatter(1, order, first)


def test_bounds_of_a_kind_that_knows_none_are_those_of_each_count() -> None:
    class Plain(TopK):
        bounds = TopK.__mro__[1].bounds

    problem, optima, unit = enumerated("top_k")
    few = replace(problem, **{n: t[:40] for n, t in problem._tensors()})
    real = few.real.sum(1, keepdim=True)
    count = torch.arange(1, TOKENS + 1)
    meant = (count <= real) & (count >= few.protected.sum(1, keepdim=True))
    off = (Plain().bounds(few, first_k(few)) - optima[:40]) / unit[:40, None]
    assert off[meant].abs().max() < 1e-12


def drawn_shares(problem: SubsetProblem, seed: int) -> tuple[Shares, Tensor, Tensor]:
    """Budgets for every `PARTS` problems, within random floors and ceilings that protect what they must."""
    g = torch.Generator().manual_seed(seed)
    batch, real = len(problem.k), problem.real.sum(1)
    low = (torch.rand(batch, generator=g) * 3).long().add(1).minimum(real).maximum(problem.protected.sum(1))
    high = low + (torch.rand(batch, generator=g) * (real - low + 1)).long()
    pool = torch.arange(batch) // PARTS
    none = torch.zeros(batch // PARTS, dtype=torch.int64)
    least, most = none.index_add(0, pool, low), none.index_add(0, pool, high)
    total = least + (torch.rand(len(none), generator=g) * (most - least + 1)).long()
    return Shares(pool, total, low, high), low, high


def best_of_splits(optima: Tensor, given: Shares) -> Tensor:
    """`[P]` the best of all splits within floors and ceilings, by trying all of them."""
    each = optima.masked_fill(~given.open(torch.arange(1, TOKENS + 1)), -math.inf).view(-1, PARTS, TOKENS)
    worth = each[:, 0, :, None, None] + each[:, 1, None, :, None] + each[:, 2, None, None, :]
    k = torch.arange(1, TOKENS + 1)
    size = k[:, None, None] + k[None, :, None] + k[None, None, :]
    return worth.masked_fill(size[None] != given.total[:, None, None, None], -math.inf).amax((1, 2, 3))


@pytest.mark.parametrize("kind", DRAWN)
def test_no_split_is_worth_more_than_the_bound(kind: str) -> None:
    problem, optima, unit = enumerated(kind)
    given, _, _ = drawn_shares(problem, seed=2)
    best = best_of_splits(optima, given)
    bound = given.bound(problem.rules.bounds(problem, first_k(problem)))
    size = given.sums(unit)
    above = torch.where(best == -math.inf, 0.0, (bound - best) / size)
    assert not bound.isnan().any()
    assert above.min() >= -1e-12
    assert above[best > -math.inf].median() < {"top_k": 1e-12, "facility_location": 0.01}.get(kind, 0.05)


def test_the_bound_is_the_optimum_where_bounds_are_concave_and_met() -> None:
    rng = np.random.default_rng(3)
    for seed in range(100):
        gains, (low, high, total) = falling(3, 5, seed), limits(rng, 3, 5)
        bound = float(shares(low, high, [total]).bound(torch.from_numpy(gains.cumsum(1))))
        size = np.abs(gains).sum()
        assert 0 <= bound - best_split(gains, low, high, total) + 1e-13 * size <= 1e-11 * size


@pytest.mark.parametrize("kind", DRAWN)
def test_gains_are_differences_of_values(kind: str) -> None:
    problem, _, unit = enumerated(kind)
    gen = torch.Generator().manual_seed(3)
    order = (
        torch.rand(problem.shape, generator=gen).masked_fill(~problem.real, -1).argsort(1, descending=True)
    )
    order = torch.where(torch.arange(TOKENS) < problem.k[:, None], order, -1)
    gains = problem.rules.gains(problem, order)
    assert torch.equal(gains.isnan(), order < 0)
    keep = torch.zeros(len(order), TOKENS + 1, dtype=torch.bool)
    before = torch.zeros(len(order), dtype=torch.float64)
    for t in range(TOKENS):
        keep = keep.scatter(1, order[:, t : t + 1] % (TOKENS + 1), True)
        there = order[:, t] >= 0
        value = problem.rules.value(problem, keep[:, :-1])
        finite = there & value.isfinite() & before.isfinite()
        error = ((value - before - gains[:, t]) / unit)[finite]
        assert error.abs().max() < (1e-6 if kind == "log_det" else 1e-12)
        before = torch.where(there, value, before)


@pytest.mark.parametrize("kind", DRAWN)
def test_gains_of_the_greedy_order_never_rise(kind: str) -> None:
    from pruneopt.registry import registry

    problem, _, unit = enumerated(kind)
    free = replace(problem, protected=None, k=problem.real.sum(1))
    solver = registry("solvers").get(str(free.rules.greedy["kind"]))()
    found = solver.solve(free)
    gains = free.rules.gains(free, found.order)
    useful = found.stats.get("rank", free.k)  # a singular kernel is filled up in another order
    rises = ((gains[:, 1:] - gains[:, :-1]) / unit[:, None]).masked_fill(
        torch.arange(1, TOKENS) >= useful[:, None], 0
    )
    rises = rises[:, 1:] if kind == "facility_location" else rises  # what the first adds is all it serves
    assert rises.nan_to_num(0.0).max() < 1e-6


def test_kinds_whose_gains_rise_offer_none() -> None:
    offering = {kind.name for kind in all_kinds() if kind.offers("gains")}
    assert offering == set(DRAWN)
    with pytest.raises(NotImplementedError):
        find_kind("max_sum").gains(None, None)
