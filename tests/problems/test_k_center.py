"""k-center: radius, bound, greedy rule and exact answer against loops over every choice."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from subset_cases import slow_best, slow_value, solver

from pruneopt import load_spec, select
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.solution import Status
from pruneopt.problems.subset import SubsetProblem
from pruneopt.signals import Signals

LINE = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 30.0], dtype=torch.float64)
APART = (LINE[:, None] - LINE).abs()[None]


def stated(seed: int, *, metric: bool, **more: object) -> SubsetProblem:
    """Nine tokens, three kept: points in the plane, or any numbers, some below 0, with a full diagonal."""
    g = torch.Generator().manual_seed(seed)
    if metric:
        x = torch.rand(2, 9, 2, generator=g, dtype=torch.float64)
        cost = torch.cdist(x, x)
    else:
        cost = torch.rand(2, 9, 9, generator=g, dtype=torch.float64) * 2 - 0.3
    return SubsetProblem.build("k_center", 3, pairwise=cost, **more)  # type: ignore[arg-type]


def extras(seed: int) -> list[dict[str, object]]:
    g = torch.Generator().manual_seed(100 + seed)
    mask = torch.arange(9) < torch.tensor([[9], [7]])
    forced = torch.zeros(2, 9, dtype=torch.bool)
    forced[:, 3], forced[1, 5] = True, True
    rows = torch.rand(2, 2, 9, generator=g, dtype=torch.float64)
    rows[0, 1] = math.inf
    every = {"mask": mask, "protected": forced, "anchors": rows}
    return [{}, *({name: tensor} for name, tensor in every.items()), every]  # type: ignore[return-value]


def test_the_radius_of_points_on_a_line() -> None:
    problem = SubsetProblem.build("k_center", 3, pairwise=APART)

    def value(*chosen: int) -> float:
        return float(problem.value(torch.tensor([[i in chosen for i in range(6)]])))

    assert value(1, 3, 5) == -1 and value(0, 3, 5) == -2 and value(0, 1, 2) == -28
    found = solver("milp").solve(problem)
    assert found.value.tolist() == [-1] and found.upper_bound.tolist() == [-1]
    assert found.keep[0, [5]].all() and found.status == (Status.OPTIMAL,)
    one = SubsetProblem.build("k_center", 1, pairwise=APART)
    assert solver("greedy_k_center").solve(one).keep.nonzero()[:, 1].tolist() == [4]  # the optimum for k = 1


def test_the_direction_of_a_pair_is_who_pays_and_who_serves() -> None:
    cost = torch.tensor([[[9.0, 5.0, 5.0], [1.0, 9.0, 5.0], [1.0, 5.0, 9.0]]])
    problem = SubsetProblem.build("k_center", 1, pairwise=cost)
    assert problem.value(torch.eye(3, dtype=torch.bool)[:1]).tolist() == [-1]  # token 0 serves both at 1
    for name in ("greedy_k_center", "local_search", "milp", "brute_force"):
        assert solver(name).solve(problem).keep.tolist() == [[True, False, False]], name


@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_exact_solvers_find_the_best_of_every_choice_and_bounds_hold(seed: int, metric: bool) -> None:
    for more in extras(seed):
        problem = stated(seed, metric=metric, **more)
        best = torch.tensor([slow_best(problem, b)[0] for b in range(2)], dtype=torch.float64)
        for name in ("milp", "brute_force"):
            found = solver(name).solve(problem)
            assert torch.allclose(found.value, best, atol=1e-12) and found.status == (Status.OPTIMAL,) * 2
        for name in ("greedy_k_center", "local_search"):
            found = solver(name).solve(problem)
            assert (found.value <= best + 1e-12).all() and (found.upper_bound >= best - 1e-12).all()
            values = [
                slow_value(problem, b, tuple(found.keep[b].nonzero().flatten().tolist())) for b in range(2)
            ]
            assert found.value.tolist() == pytest.approx(values)


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_proves_a_factor_of_two_on_metrics(seed: int) -> None:
    for more in extras(seed):
        if "anchors" in more:
            continue  # random rows are no distances of a metric
        problem = stated(seed, metric=True, **more)
        found = solver("greedy_k_center").solve(problem)
        best = torch.tensor([slow_best(problem, b)[0] for b in range(2)], dtype=torch.float64)
        assert (found.value >= 2 * best - 1e-12).all()
        assert (found.value >= 2 * found.upper_bound - 1e-12).all()  # Gonzalez, without knowing the optimum


def test_the_bound_is_exact_where_tokens_must_share() -> None:
    """Three far pairs, two kept: some pair has no server nearer than another pair."""
    spots = torch.tensor([0.0, 1.0, 100.0, 101.0, 300.0, 301.0], dtype=torch.float64)
    problem = SubsetProblem.build("k_center", 2, pairwise=(spots[:, None] - spots).abs()[None])
    best = slow_best(problem, 0)[0]
    for chosen in combinations(range(6), 2):
        keep = torch.tensor([[i in chosen for i in range(6)]])
        assert problem.bound(keep)[0].tolist() == pytest.approx([best])


def test_all_tokens_kept_and_anchors_that_serve_everybody() -> None:
    whole = SubsetProblem.build("k_center", 6, pairwise=APART)
    for name in ("greedy_k_center", "local_search", "milp"):
        found = solver(name).solve(whole)
        assert found.keep.all() and found.value.tolist() == [0] == found.upper_bound.tolist()
    near = torch.full((1, 1, 6), 0.5, dtype=torch.float64)
    served = SubsetProblem.build("k_center", 1, pairwise=APART, anchors=near)
    for name in ("greedy_k_center", "milp", "brute_force"):
        found = solver(name).solve(served)
        assert found.value.tolist() == [-0.5] == found.upper_bound.tolist()


def test_local_search_leaves_the_greedy_answer_behind() -> None:
    values = []
    for seed in range(6):
        problem = stated(seed, metric=False)
        first, better = solver("greedy_k_center").solve(problem), solver("local_search").solve(problem)
        assert (better.value >= first.value).all()
        values.append(float((better.value - first.value).sum()))
    assert sum(values) > 0.1


def test_a_spec_states_it_with_any_cost_in_either_direction() -> None:
    g = torch.Generator().manual_seed(2)
    signals = Signals({"features": torch.randn(2, 12, 6, generator=g)})
    data = {
        "insertion": "post_encoder",
        "budget": {"keep": 4},
        "problem": {"kind": "k_center", "pairwise": {"far": "cosine_distance"}},
        "solver": "greedy_k_center",
    }
    greedy, exact = (
        select(load_spec({**data, "solver": name}), signals) for name in ("greedy_k_center", "milp")
    )
    assert greedy.known_counts == exact.known_counts == (4, 4)
    assert (exact.solution.value >= greedy.solution.value).all()
    assert (exact.solution.gap <= 1e-9).all() and (greedy.solution.gap >= 0).all()
    one_way = {**data, "problem": {"kind": "k_center", "pairwise": {"far": "feature_sq_l2"}}}
    assert not find_kind("k_center").symmetric and load_spec(one_way)  # who pays and who serves may differ
