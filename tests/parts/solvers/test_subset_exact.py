"""Exact solvers against enumeration, bounds against the optimum, and heuristics below it."""

from __future__ import annotations

import math

import pytest
import torch
from subset_cases import KINDS, names, random_problem, slow_best, slow_value, solver

from pruneopt.errors import ProblemError
from pruneopt.parts.solvers._linear import lp_bound
from pruneopt.problems.kinds.max_min import metric_bound
from pruneopt.problems.solution import Status
from pruneopt.problems.subset import SubsetProblem

SHAPES = [
    {},
    {"ragged": True},
    {"protect": True},
    {"anchors": True},
    {"ragged": True, "protect": True, "anchors": True},
]
CASES = [
    (kind, seed, shape)
    for kind in KINDS
    for seed, shape in enumerate(SHAPES)
    if not shape.get("anchors") or kind in ("max_min", "max_sum")
]
EXACT = [(n, kind, seed, shape) for kind, seed, shape in CASES for n in names(kind, exact=True)]


@pytest.mark.parametrize(("name", "kind", "seed", "shape"), EXACT)
def test_exact_solvers_find_the_enumerated_optimum(name, kind, seed, shape):
    problem = random_problem(kind, seed, **shape)
    solution = solver(name).solve(problem)
    for b in range(2):
        best, where = slow_best(problem, b)
        assert solution.value[b].item() == pytest.approx(best, abs=1e-9)
        assert slow_value(problem, b, tuple(solution.keep[b].nonzero()[:, 0].tolist())) == pytest.approx(best)
        assert solution.gap[b].item() == pytest.approx(0, abs=1e-6 if name == "milp" else 1e-9)
        assert solution.status[b] is Status.OPTIMAL
        if name == "brute_force" and kind != "independent_set":
            assert tuple(solution.keep[b].nonzero()[:, 0].tolist()) == where


@pytest.mark.parametrize(("kind", "seed", "shape"), CASES)
def test_heuristics_stay_below_the_optimum_and_bounds_above(kind, seed, shape):
    problem = random_problem(kind, seed, **shape)
    best = torch.tensor([slow_best(problem, b)[0] for b in range(2)], dtype=torch.float64)
    for name in names(kind, exact=False):
        if name == "pivot" and problem.unary is None:
            continue
        params = {"pivots": 2} if name == "pivot" else {}
        solution = solver(name, **params).solve(problem)
        chosen = [tuple(solution.keep[b].nonzero()[:, 0].tolist()) for b in range(2)]
        expected = torch.tensor([slow_value(problem, b, chosen[b]) for b in range(2)])
        torch.testing.assert_close(solution.value.float(), expected)
        assert (solution.value <= best + 1e-9).all(), name
        assert (solution.upper_bound >= best - 1e-9).all(), name
        assert (solution.gap >= -1e-9).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_objectives_of_every_choice(kind):
    problem = random_problem(kind, 0, batch=1, tokens=6, k=3)
    seen = 0
    for code in range(1, 2**6):
        keep = torch.tensor([[bool(code >> i & 1) for i in range(6)]])
        chosen = tuple(i for i in range(6) if code >> i & 1)
        expected = slow_value(problem, 0, chosen)
        got = problem.value(keep).item()
        assert got == pytest.approx(expected, abs=1e-9)
        seen += expected > -math.inf
    assert seen > 0


@pytest.mark.parametrize(
    "kind", ["top_k", "quota", "independent_set", "max_min", "max_sum", "facility_location"]
)
def test_cvxpy_route_agrees_with_the_direct_one(kind):
    pytest.importorskip("cvxpy")
    problem = random_problem(kind, 1, batch=1, tokens=8, k=3)
    direct, through = (solver("milp", backend=b).solve(problem) for b in ("highs", "cvxpy"))
    torch.testing.assert_close(direct.value, through.value)
    assert through.status == (Status.OPTIMAL,)


def test_a_solver_that_reports_no_bound_proves_only_what_bounds_confirm():
    """SciPy's route through cvxpy keeps its bound to itself: that of a relaxation must be met."""
    pytest.importorskip("cvxpy")
    part = solver("milp", backend="cvxpy", solver="SCIPY")
    sorting = random_problem("top_k", 1)
    assert part.solve(sorting).status == (Status.OPTIMAL, Status.OPTIMAL)
    problem = random_problem("max_sum", 1)
    solution = part.solve(problem)
    for b in range(2):
        assert solution.value[b].item() == pytest.approx(slow_best(problem, b)[0])
        assert solution.upper_bound[b] > solution.value[b] * (1 + 1e-6)
    assert solution.status == (Status.UNPROVED, Status.UNPROVED)


def test_cvxpy_names_a_missing_solver():
    pytest.importorskip("cvxpy")
    with pytest.raises(ProblemError, match="installed"):
        solver("milp", backend="cvxpy", solver="NO_SUCH").solve(random_problem("top_k"))


@pytest.mark.parametrize("kind", ["max_sum", "facility_location", "independent_set"])
def test_lp_relaxation_bounds_the_optimum(kind):
    problem = random_problem(kind, 3, batch=1, tokens=10, k=4)
    bound, best = lp_bound(problem).item(), slow_best(problem, 0)[0]
    assert best - 1e-9 <= bound < math.inf
    assert bound <= 2 * best


@pytest.mark.parametrize(("name", "kind"), [("milp", "max_min"), ("branch_and_bound", "max_min")])
def test_max_min_at_forty_tokens(name, kind):
    problem = random_problem(kind, 5, batch=1, tokens=40, k=8, width=6)
    solution = solver(name, time_limit=30.0).solve(problem)
    assert solution.status == (Status.OPTIMAL,)
    assert solution.value[0] >= solver("farthest_point").solve(problem).value[0]


def test_branch_and_bound_log_det_beats_greedy_and_proves_it():
    problem = random_problem("log_det", 2, batch=1, tokens=18, k=6, width=10)
    solution = solver("branch_and_bound").solve(problem)
    other = [solver("greedy_log_det").solve(problem), solver("local_search").solve(problem)]
    assert solution.status == (Status.OPTIMAL,)
    assert all(solution.value[0] >= o.value[0] - 1e-9 for o in other)
    assert all(o.upper_bound[0] >= solution.value[0] for o in other)


@pytest.mark.parametrize(
    ("name", "kind", "params"),
    [
        ("branch_and_bound", "log_det", {"nodes": 3}),
        ("branch_and_bound", "max_min", {"nodes": 1}),
        ("milp", "max_sum", {"time_limit": 0.01}),
        ("milp", "max_min", {"time_limit": 1e-6}),
    ],
)
def test_limits_are_kept_and_said(name, kind, params):
    problem = random_problem(kind, 4, batch=1, tokens=60, k=12, width=30)
    solution = solver(name, **params).solve(problem)
    assert solution.status == (Status.TIME_LIMIT,)
    assert solution.keep.sum() == 12
    assert solution.value[0] <= solution.upper_bound[0] < math.inf


def test_brute_force_refuses_more_than_sixteen():
    with pytest.raises(ProblemError, match=r"sample 0 has 17"):
        solver("brute_force").solve(random_problem("top_k", tokens=17))


@pytest.mark.parametrize("name", ["brute_force", "milp"])
def test_conflicting_protected_tokens_are_infeasible(name):
    similar = torch.ones(1, 4, 4)
    protected = torch.tensor([[True, True, False, False]])
    problem = SubsetProblem.build(
        "independent_set", 2, unary=torch.ones(1, 4), pairwise=similar, protected=protected, threshold=0.5
    )
    solution = solver(name).solve(problem)
    assert solution.status == (Status.INFEASIBLE,)
    assert solution.value.item() == -math.inf


def test_negative_weights_of_facility_location_have_no_bound_and_say_so():
    problem = random_problem("facility_location")
    unary = problem.unary.clone()
    unary[0, 0] = -1
    bad = SubsetProblem.build("facility_location", 3, unary=unary, pairwise=problem.pairwise)
    for name in ("lazy_greedy", "milp"):
        with pytest.raises(ProblemError, match="negative"):
            solver(name).solve(bad)
    solution = solver("brute_force").solve(bad)
    assert solution.value[0] == pytest.approx(slow_best(bad, 0)[0])


@pytest.mark.parametrize("seed", range(5))
def test_farthest_point_is_at_least_half_of_a_metric_optimum(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 9, 2, generator=g, dtype=torch.float64)
    problem = SubsetProblem.build("max_min", 4, pairwise=torch.cdist(x, x))
    for rule in ("max_nn_distance", "first", "max_mean_distance"):
        solution = solver("farthest_point", seed=rule).solve(problem)
        best = torch.tensor([slow_best(problem, b)[0] for b in range(3)], dtype=torch.float64)
        assert (solution.value >= best / 2 - 1e-12).all()
        assert (metric_bound(problem, solution.keep) >= best - 1e-12).all()


@pytest.mark.parametrize("seed", range(5))
def test_greedy_facility_location_is_within_one_minus_one_over_e(seed):
    g = torch.Generator().manual_seed(seed)
    similar = torch.rand(3, 9, 9, generator=g, dtype=torch.float64)
    problem = SubsetProblem.build("facility_location", 3, pairwise=similar)
    solution = solver("lazy_greedy").solve(problem)
    best = torch.tensor([slow_best(problem, b)[0] for b in range(3)], dtype=torch.float64)
    assert (solution.value >= (1 - 1 / math.e) * best).all()
    assert (solution.upper_bound >= best - 1e-12).all()


def test_bounds_are_tight_where_the_problem_is_easy():
    modular = random_problem("top_k", 0)
    assert solver("stable_top_k").solve(modular).gap.abs().max() < 1e-12
    eye = torch.eye(6, dtype=torch.float64)[None]
    flat = SubsetProblem.build("log_det", 3, pairwise=eye)
    assert solver("greedy_log_det").solve(flat).gap.abs().max() < 1e-9
    spread = SubsetProblem.build("max_min", 3, pairwise=1 - eye)
    assert solver("farthest_point").solve(spread).gap.abs().max() == 0
    total = SubsetProblem.build("max_sum", 3, pairwise=1 - eye)
    assert solver("greedy_max_sum").solve(total).gap.abs().max() < 1e-9
