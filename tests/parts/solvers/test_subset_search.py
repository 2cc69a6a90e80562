"""Searches: never worse than their start, near the optimum where all can be tried, the same twice."""

from __future__ import annotations

import math

import pytest
import torch
from subset_cases import random_problem, solver

from pruneopt.errors import ProblemError, SpecError
from pruneopt.problems.kinds import all_kinds
from pruneopt.problems.subset import SubsetProblem

SEARCHES = [kind.name for kind in all_kinds() if kind.search]
SHARE = {"max_min": 0.99, "log_det": 0.8, "facility_location": 0.8, "max_sum": 0.4}


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("protect", [False, True])
def test_the_search_of_a_kind_lies_between_greedy_and_the_optimum(kind, protect):
    """Over ten small problems it closes at least a share of what greedy leaves open."""
    left = reached = 0.0
    for seed in range(10):
        problem = random_problem(kind, seed, batch=2, tokens=11, k=4, ragged=True, protect=protect)
        first, best = (
            solver(**named(rule)).solve(problem).value for rule in (problem.rules.greedy, "brute_force")
        )
        solution = solver(**named(problem.rules.search)).solve(problem)
        assert solution.value.equal(problem.value(solution.keep))
        assert (solution.value >= first - 1e-12).all() and (solution.value <= best + 1e-9).all()
        assert problem.protected is None or (solution.keep | ~problem.protected).all()
        left += float((best - first).sum())
        reached += float((solution.value - first).sum())
    assert reached >= SHARE.get(kind, 0.0) * left


def named(rule: str | dict) -> dict:
    given = {"kind": rule} if isinstance(rule, str) else dict(rule)
    return {"name": given.pop("kind"), **given}


def test_threshold_search_gets_out_of_local_optima():
    further = 0
    for seed in range(5):
        problem = random_problem("max_min", seed, batch=2, tokens=14, k=6)
        found = solver("threshold_search").solve(problem).value
        assert found.tolist() == pytest.approx(solver("brute_force").solve(problem).value.tolist())
        further += int((found > solver("local_search").solve(problem).value + 1e-9).sum())
    assert further >= 5


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_threshold_search_keeps_its_choice_at_every_scale_and_shift(scale):
    plain = random_problem("max_min", 2, batch=2, tokens=20, k=7)
    keep = solver("threshold_search").solve(plain).keep
    for moved in (plain.pairwise * scale, plain.pairwise - 5):
        again = solver("threshold_search").solve(SubsetProblem.build("max_min", 7, pairwise=moved))
        assert again.value.allclose(SubsetProblem.build("max_min", 7, pairwise=moved).value(keep), rtol=1e-9)


def test_threshold_search_counts_anchors_and_never_moves_what_is_protected():
    problem = random_problem("max_min", 1, batch=3, tokens=11, k=4, protect=True, anchors=True)
    best = solver("brute_force").solve(problem)
    found = solver("threshold_search").solve(problem)
    assert found.value.tolist() == pytest.approx(best.value.tolist())
    assert (found.keep | ~problem.protected).all()
    assert found.status == tuple(found.ended) and not any(s.proved for s in found.status)


def test_threshold_search_stops_where_nothing_is_left_to_win():
    flat = SubsetProblem.build("max_min", 3, pairwise=torch.ones(1, 6, 6) - torch.eye(6))
    alone = SubsetProblem.build("max_min", 1, pairwise=torch.rand(1, 6, 6).pow(0) - torch.eye(6))
    every = SubsetProblem.build("max_min", 6, pairwise=torch.ones(1, 6, 6) - torch.eye(6))
    for problem in (flat, alone, every):
        assert solver("threshold_search").solve(problem).stats["moves"] == [0]


def test_more_moves_at_more_levels_do_not_end_lower():
    problem = random_problem("max_min", 8, batch=4, tokens=40, k=12)
    few, many = (
        solver("threshold_search", moves=m, levels=n).solve(problem).value for m, n in ((3, 2), (1000, 12))
    )
    assert (many >= few).all() and (many > few).any()


def test_a_search_refuses_a_start_of_another_kind():
    with pytest.raises(
        SpecError, match=r"threshold_search.start 'lazy_greedy' is not another solver of max_min"
    ):
        solver("threshold_search", start="lazy_greedy").solve(random_problem("max_min"))


def facilities(seed: int = 0, tokens: int = 12, **options) -> SubsetProblem:
    plain = random_problem("facility_location", seed, tokens=tokens, **options)
    return SubsetProblem.build(
        "facility_location", 4, unary=plain.unary, pairwise=plain.pairwise.abs(), mask=plain.mask,
        protected=plain.protected,
    )  # fmt: skip


def test_stochastic_greedy_is_on_average_within_its_guarantee():
    share = []
    for seed in range(20):
        problem = facilities(seed)
        best = solver("brute_force").solve(problem).value
        found = solver("stochastic_greedy", seed=seed, epsilon=0.3).solve(problem)
        assert (found.value <= best + 1e-9).all() and found.keep.sum(1).eq(4).all()
        share += (found.value / best).tolist()
    assert sum(share) / len(share) >= 1 - 1 / math.e - 0.3
    assert min(share) < 1  # so that something was left to chance


def test_stochastic_greedy_that_asks_all_tokens_is_greedy():
    problem = facilities(3, tokens=30, ragged=True, protect=True)
    all_of_them = solver("stochastic_greedy", epsilon=1e-6).solve(problem)
    assert all_of_them.keep.equal(solver("lazy_greedy").solve(problem).keep)
    assert all_of_them.order.equal(solver("lazy_greedy").solve(problem).order)


def test_stochastic_greedy_repeats_a_seed_and_sees_neither_batch_mates_nor_the_global_generator():
    problem = facilities(1, tokens=40, batch=3, ragged=True)
    first = solver("stochastic_greedy", seed=7).solve(problem).keep
    torch.manual_seed(99)
    assert solver("stochastic_greedy", seed=7).solve(problem).keep.equal(first)
    others = [solver("stochastic_greedy", seed=s).solve(problem).keep for s in range(5)]
    assert len({tuple(map(tuple, keep.tolist())) for keep in others}) > 1
    for b in range(3):
        n = int(problem.real[b].sum())
        alone = SubsetProblem.build(
            "facility_location",
            4,
            unary=problem.unary[b : b + 1, :n],
            pairwise=problem.pairwise[b : b + 1, :n, :n],
        )
        assert solver("stochastic_greedy", seed=7).solve(alone).keep[0].equal(first[b, :n])


def test_stochastic_greedy_refuses_negative_weights():
    problem = SubsetProblem.build(
        "facility_location", 2, unary=-torch.ones(1, 5), pairwise=torch.eye(5)[None]
    )
    with pytest.raises(ProblemError, match="stochastic_greedy needs non-negative scores"):
        solver("stochastic_greedy").solve(problem)
