"""Properties on random problems: order of values and bounds, and what the hot path never does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subset_cases import KINDS, OWN, names, random_problem, solver

from pruneopt.problems.subset import SubsetProblem
from pruneopt.testing.signal_checks import sync_operations


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(2, 9),
    share=st.floats(0.1, 1.0),
    ragged=st.booleans(),
    protect=st.booleans(),
    width=st.integers(2, 12),
)
def test_heuristic_exact_bound_are_in_this_order(kind, seed, tokens, share, ragged, protect, width):
    tokens = max(tokens, 4 if protect or ragged else 2)
    k = max(1, min(tokens - 2 if ragged else tokens, round(share * tokens)))
    if kind == "quota":
        k = 2 * max(1, min(k, tokens - 2) // 2)
        ragged = False
    protect = protect and k > 1 and (not ragged or tokens > 5)
    problem = random_problem(kind, seed, 2, tokens, k, ragged, protect, width=width)
    best = solver("brute_force").solve(problem)
    slack = 1e-6 * (1 + best.value.abs().nan_to_num(posinf=0, neginf=0))
    for name in names(kind):
        if name == "brute_force" or (name == "pivot" and problem.unary is None):
            continue
        if name == "branch_and_bound" and not best.value.isfinite().all():
            continue  # every choice has determinant zero up to rounding
        solution = solver(name).solve(problem)
        fair = best.value.isfinite() | (solution.value == best.value)
        if kind == "log_det":
            fair &= best.value > -20  # below, rounding decides
        assert (solution.value <= best.value + slack)[fair].all(), name
        assert (solution.upper_bound >= best.value - slack)[fair].all(), name
        if name in names(kind, exact=True):
            assert (solution.value >= best.value - slack)[fair].all(), name
        if kind != "independent_set":
            assert not problem.broken(solution.keep).any(), name


HOST = {"brute_force", "milp", "branch_and_bound", "local_search", "lazy_greedy", "threshold_search"}
HOT = sorted(set(OWN) - HOST)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for k in KINDS for n in names(k) if n in HOT])
def test_the_hot_path_never_waits_for_the_device(name, kind):
    plain = random_problem(kind, 0, tokens=20, k=6, ragged=True, protect=True)
    problem = SubsetProblem.build(
        kind, plain.k, unary=plain.unary, pairwise=plain.pairwise, mask=plain.mask,
        protected=plain.protected, anchors=plain.anchors, threshold=plain.threshold,
        group=plain.group, quota=plain.quota, check=False, counts=(6, 6),
    )  # fmt: skip
    part = solver(name)
    assert sync_operations(lambda: part.solve(problem)) == []


def test_counts_on_the_host_are_not_needed():
    plain = random_problem("max_min", 0, tokens=20, k=6)
    unknown = SubsetProblem.build("max_min", torch.tensor([6, 3]), unary=plain.unary, pairwise=plain.pairwise)
    assert unknown.counts is None
    assert solver("farthest_point").solve(unknown).keep.sum(1).tolist() == [6, 3]
