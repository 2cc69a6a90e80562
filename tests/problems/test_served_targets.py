"""Facility location over a cost: tokens and external points are served, held to loops and brute force."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts.solvers.brute_force import BruteForce
from pruneopt.parts.solvers.lazy_greedy import LazyGreedy
from pruneopt.parts.solvers.local_search import LocalSearch
from pruneopt.parts.solvers.milp import Milp
from pruneopt.problems.subset import SubsetProblem

TOKENS, POINTS, K = 7, 5, 3
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]]).bool()


def drawn(seed: int, sort: str) -> SubsetProblem:
    """A ragged batch whose padding holds large numbers; the last point of sample 0 is absent."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randn(2, TOKENS, TOKENS, generator=g).double()
    cost = torch.rand(2, POINTS, TOKENS, generator=g).double()
    pairs = pairs.masked_fill(~(MASK[:, :, None] & MASK[:, None, :]), 1e9)
    cost = cost.masked_fill(~MASK[:, None, :], -1e9)
    cost[0, -1] = math.inf
    terms = {
        "points": {"anchors": cost},
        "tokens": {"pairwise": pairs, "unary": torch.rand(2, TOKENS, generator=g).double()},
        "both": {"pairwise": pairs, "anchors": cost},
    }[sort]
    return SubsetProblem.build("facility_location", K, mask=MASK, **terms)


def worth(problem: SubsetProblem, b: int, chosen: tuple[int, ...]) -> float:
    total = 0.0
    if problem.pairwise is not None:
        weight = [1.0] * TOKENS if problem.unary is None else problem.unary[b].tolist()
        for n in MASK[b].nonzero().squeeze(1).tolist():
            total += weight[n] * max(float(problem.pairwise[b, n, s]) for s in chosen)
    if problem.anchors is not None:
        for row in problem.anchors[b]:
            served = [float(row[s]) for s in chosen]
            total -= min(served) if math.isfinite(min(served)) else 0.0
    return total


def sets(b: int) -> list[tuple[int, ...]]:
    return list(combinations(MASK[b].nonzero().squeeze(1).tolist(), K))


def hot(*chosen: tuple[int, ...]) -> Tensor:
    keep = torch.zeros(len(chosen), TOKENS, dtype=torch.bool)
    for row, one in zip(keep, chosen, strict=True):
        row[list(one)] = True
    return keep


SORTS = pytest.mark.parametrize("sort", ["points", "tokens", "both"])


@SORTS
@pytest.mark.parametrize("seed", range(3))
def test_value_and_bound_are_those_of_the_loops(sort: str, seed: int) -> None:
    problem = drawn(seed, sort)
    best = [max(worth(problem, b, s) for s in sets(b)) for b in range(2)]
    for one, two in zip(sets(0)[::5], sets(1)[::2], strict=False):
        keep = hot(one, two)
        wanted = [worth(problem, 0, one), worth(problem, 1, two)]
        assert problem.value(keep).tolist() == pytest.approx(wanted, abs=1e-9)
        bound, why = problem.bound(keep)
        assert bound is not None and why == ""
        assert all(float(x) >= y - 1e-9 for x, y in zip(bound, best, strict=True))


@SORTS
def test_a_swap_gains_what_the_loops_say(sort: str) -> None:
    problem = drawn(4, sort)
    one, two = sets(0)[3], sets(1)[2]
    gains = problem.rules.swap_gains(problem, hot(one, two))
    for b, chosen in enumerate((one, two)):
        for i in chosen:
            for j in set(MASK[b].nonzero().squeeze(1).tolist()) - set(chosen):
                swapped = tuple(sorted({*chosen, j} - {i}))
                assert float(gains[b, i, j]) == pytest.approx(
                    worth(problem, b, swapped) - worth(problem, b, chosen), abs=1e-9
                )


@SORTS
@pytest.mark.parametrize("seed", range(2))
def test_solvers_agree_with_brute_force_and_the_gap_is_certified(sort: str, seed: int) -> None:
    problem = drawn(seed, sort)
    best = [max(worth(problem, b, s) for s in sets(b)) for b in range(2)]
    for exact in (BruteForce(), Milp()):
        found = exact.solve(problem)
        assert found.value.tolist() == pytest.approx(best, abs=1e-7)
        assert all(status.proved for status in found.status), exact.name
    for rule in (LazyGreedy(lazy="always"), LazyGreedy(lazy="never"), LocalSearch()):
        found = rule.solve(problem)
        assert not bool(problem.broken(found.keep).any())
        assert found.gap is not None
        for value, gap, top in zip(found.value.tolist(), found.gap.tolist(), best, strict=True):
            assert value <= top + 1e-9 <= value + gap + 2e-9


@pytest.mark.parametrize("lazy", ["always", "never"])
@SORTS
def test_greedy_takes_the_largest_gain_each_time(sort: str, lazy: str) -> None:
    problem = drawn(7, sort)
    order = LazyGreedy(lazy=lazy).solve(problem).order
    assert order is not None
    for b in range(2):
        chosen: tuple[int, ...] = ()
        for t in range(K):
            free = [i for i in MASK[b].nonzero().squeeze(1).tolist() if i not in chosen]
            chosen = (*chosen, max(free, key=lambda i, s=chosen: worth(problem, b, (*s, i))))
            assert order[b, t] == chosen[-1]


def test_scores_without_tokens_to_weigh_and_nothing_to_serve_are_refused() -> None:
    cost = torch.rand(1, 2, 4)
    with pytest.raises(ProblemError, match="unary weighs tokens that are served, and only anchors are"):
        SubsetProblem.build("facility_location", 2, anchors=cost, unary=torch.ones(1, 4))
    with pytest.raises(ProblemError, match="needs a pairwise matrix"):
        SubsetProblem.build("facility_location", 2, unary=torch.ones(1, 4))
    with pytest.raises(ProblemError, match=r"anchors must have shape \[1, A, 2\], got \[1, 2\]"):
        SubsetProblem.build("facility_location", 1, anchors=torch.rand(1, 2))
    assert SubsetProblem.build("facility_location", 2, anchors=cost).shape == (1, 4)
