"""Heuristics: worked vectors, ties, masks, batches, budgets, speed."""

from __future__ import annotations

import math

import pytest
import torch
from subset_cases import KINDS, names, random_problem, slow_value, solver, unit

from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts.solvers.pivot import walk_pivots
from pruneopt.problems.subset import SubsetProblem

HEURISTIC = [(n, kind) for kind in KINDS for n in names(kind) if n not in ("milp", "branch_and_bound")]
GREEDY = [(n, kind) for n, kind in HEURISTIC if n not in ("brute_force", "local_search", "threshold_search")]

# The rows of the worked checks in the method cards of GreedyPrune, ToDRE, ZSPAPrune and TrimTokenator.
V = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [-1, 0], [0.6, 0.8], [0, -2]], dtype=torch.float64)
UNIT = (V / V.norm(dim=1, keepdim=True))[None]
COSINE = UNIT @ UNIT.transpose(1, 2)


def kept(solution) -> list[int]:
    return solution.keep[0].nonzero().squeeze(1).tolist()


def test_greedy_conflict_follows_the_worked_check_of_greedyprune():
    last = torch.tensor([0.8, -0.2], dtype=torch.float64)
    w = UNIT @ (last / last.norm())
    tight = SubsetProblem.build("independent_set", 3, unary=w, pairwise=COSINE, threshold=0.9)
    assert kept(solver("greedy_conflict").solve(tight)) == [0, 4, 5]
    loose = SubsetProblem.build("independent_set", 5, unary=w, pairwise=COSINE, threshold=0.5)
    filled = solver("greedy_conflict").solve(loose)
    assert filled.order[0].tolist() == [0, 5, 2, 3, 1]
    assert filled.stats["filled"].tolist() == [1]
    assert filled.value.item() == -math.inf
    stopped = solver("greedy_conflict", on_shortfall="stop").solve(loose)
    assert stopped.order[0].tolist() == [0, 5, 2, 3, -1]
    assert kept(stopped) == [0, 2, 3, 5]


def test_greedy_max_sum_follows_the_worked_check_of_todre():
    pivot = torch.zeros(1, 6, dtype=torch.float64)
    pivot[0, 4] = 1
    problem = SubsetProblem.build("max_sum", 4, unary=pivot, pairwise=1 - COSINE)
    solution = solver("greedy_max_sum", seed="unary", scores="seed").solve(problem)
    assert solution.order[0].tolist() == [4, 5, 3, 1]
    assert solution.problem.unary is None  # the score only chose the seed, so it is not in the objective
    assert solution.value.item() == pytest.approx(
        SubsetProblem.build("max_sum", 4, pairwise=1 - COSINE).value(solution.keep).item()
    )


def test_farthest_point_with_a_core_follows_the_worked_check_of_zspaprune():
    prompt = torch.tensor([[1, 0.2], [0.8, -0.2]], dtype=torch.float64).mean(0)
    relevance = UNIT @ (prompt / prompt.norm())
    problem = SubsetProblem.build("max_min", 4, unary=relevance, pairwise=1 - COSINE)
    assert solver("farthest_point", core=0.5).solve(problem).order[0].tolist() == [0, 1, 3, 5]


def test_greedy_max_sum_follows_the_worked_check_of_trimtokenator():
    stage_one = torch.tensor([0, 1, 4, 2, 3])
    sub = (1 - COSINE)[:, stage_one][:, :, stage_one]
    order = solver("greedy_max_sum").solve(SubsetProblem.build("max_sum", 2, pairwise=sub)).order[0]
    assert stage_one[order].tolist() == [3, 0]


def test_farthest_point_masks_chosen_tokens_where_divprune_repeats_them():
    x = torch.ones(1, 10, 4)
    x[0, 0] = torch.tensor([1.0, -1, 0, 0])
    x = x / x.norm(dim=2, keepdim=True)
    solution = solver("farthest_point").solve(
        SubsetProblem.build("max_min", 5, pairwise=1 - x @ x.transpose(1, 2))
    )
    assert solution.order[0].tolist()[:2] == [0, 1]
    assert solution.keep.sum() == 5


def test_pivot_shares_the_budget_and_respects_the_order_of_visits():
    rows = torch.tensor([[[5.0, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1], [0, 1, 2, 3, 4, 5]]])
    free, usable = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    visits = torch.tensor([[2, 0, 1]])
    picked = walk_pivots(rows, visits, usable=usable, free=free, left=torch.tensor([4]))
    assert picked[0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]  # 2 for pivot 2, then one each
    other = walk_pivots(rows, torch.tensor([[0, 1, 2]]), usable=usable, free=free, left=torch.tensor([4]))
    assert other[0].nonzero()[:, 0].tolist() == [0, 1, 2, 5]
    without = walk_pivots(
        rows, visits, usable=torch.tensor([[True, True, False]]), free=free, left=torch.tensor([2])
    )
    assert without[0].nonzero()[:, 0].tolist() == [0, 1]


def test_pivot_ignores_absent_anchors_and_needs_some_pivot():
    problem = random_problem("max_min", 3, batch=1, anchors=True)
    few = SubsetProblem.build(
        "max_min", 4, unary=problem.unary, pairwise=problem.pairwise, anchors=problem.anchors[:, [0, 2]]
    )
    params = {"pivots": 1, "text_pivots": 2}
    same = [solver("pivot", **params).solve(p).keep for p in (problem, few)]
    assert same[0].equal(same[1])
    bare = SubsetProblem.build("max_min", 4, unary=problem.unary, pairwise=problem.pairwise)
    with pytest.raises(ProblemError, match="no pivots"):
        solver("pivot", pivots=0).solve(bare)


def test_release_order_of_pivots_is_that_of_a_python_set():
    problem = random_problem("max_min", 2, batch=1, tokens=40, k=12)
    unary = torch.zeros(1, 40)
    unary[0, [31, 3, 17, 8]] = torch.tensor([4.0, 3, 2, 1])
    problem = SubsetProblem.build("max_min", 12, unary=unary, pairwise=problem.pairwise)
    part = solver("dart_pivots", text_pivots=0, prefix=7)
    places = torch.tensor([[31, 3, 17, 8]])
    visits = part._visits(places, torch.ones(1, 4, dtype=torch.bool))
    assert (places[0][visits[0]] + 7).tolist() == list({38, 10, 24, 15})
    assert part.solve(problem).keep.sum() == 12


@pytest.mark.parametrize(("name", "kind"), HEURISTIC)
@pytest.mark.parametrize("k", [1, 8, 9])
def test_counts_are_exact_at_the_ends(name, kind, k):
    problem = random_problem(kind, 0, k=k, protect=k > 1)
    solution = solver(name).solve(problem)
    count = solution.keep.sum(1)
    if kind == "independent_set" and name in ("local_search", "brute_force"):
        assert ((count >= 1) & (count <= k)).all()
    else:
        assert (count == k).all()
    if k > 1 and not (kind == "independent_set" and name == "brute_force"):
        assert solution.keep[:, 3].all()
    if solution.order is not None:
        for row, keep in zip(solution.order, solution.keep, strict=True):
            chosen = row[row >= 0]
            assert sorted(chosen.tolist()) == keep.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(("name", "kind"), HEURISTIC)
def test_a_batch_equals_its_samples_and_padding_is_never_read(name, kind):
    problem = random_problem(kind, 0, batch=3, ragged=True, protect=True, anchors=kind == "max_sum")
    together = solver(name).solve(problem)
    dirty = {}
    pad = ~problem.mask
    if problem.unary is not None:
        dirty["unary"] = problem.unary.masked_fill(pad, math.nan)
    if problem.pairwise is not None:
        dirty["pairwise"] = problem.pairwise.masked_fill(pad[:, :, None] | pad[:, None, :], math.nan)
    for b in range(3):
        n = int(problem.mask[b].sum())

        def part(t, b=b, n=n):
            return None if t is None else t[b : b + 1, :n]

        pair = None if problem.pairwise is None else problem.pairwise[b : b + 1, :n, :n]
        anchors = None if problem.anchors is None else problem.anchors[b : b + 1, :, :n]
        quota = None if problem.quota is None else problem.quota[b : b + 1]
        alone = solver(name).solve(
            SubsetProblem.build(
                kind,
                4,
                unary=part(problem.unary),
                pairwise=pair,
                protected=part(problem.protected),
                anchors=anchors,
                threshold=problem.threshold,
                group=part(problem.group),
                quota=quota,
            )
        )
        assert alone.keep[0].equal(together.keep[b, :n])
        assert not together.keep[b, n:].any()
        assert alone.value[0].item() == pytest.approx(together.value[b].item(), rel=1e-12)
        assert alone.upper_bound[0].item() == pytest.approx(together.upper_bound[b].item(), rel=1e-9)
    poisoned = SubsetProblem.build(
        kind, 4, unary=dirty.get("unary"), pairwise=dirty.get("pairwise"), mask=problem.mask,
        protected=problem.protected, anchors=problem.anchors, threshold=problem.threshold,
        group=problem.group, quota=problem.quota,
    )  # fmt: skip
    again = solver(name).solve(poisoned)
    assert again.keep.equal(together.keep)
    assert again.value.isfinite().equal(together.value.isfinite())


@pytest.mark.parametrize(("name", "kind"), HEURISTIC)
def test_permuting_tokens_permutes_the_answer(name, kind):
    problem = random_problem(kind, 4, batch=2, tokens=12, k=5)
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        p = torch.randperm(12, generator=g)
        moved = SubsetProblem.build(
            kind, 5,
            unary=None if problem.unary is None else problem.unary[:, p],
            pairwise=None if problem.pairwise is None else problem.pairwise[:, p][:, :, p],
            threshold=problem.threshold,
            group=None if problem.group is None else problem.group[:, p],
            quota=problem.quota,
        )  # fmt: skip
        part = solver(name, **({"pivots": 1} if name == "pivot" else {}))  # several are visited by index
        first, second = part.solve(problem), part.solve(moved)
        torch.testing.assert_close(second.value, first.value)
        if name not in ("brute_force", "threshold_search"):  # which of equal values depends on the index
            assert second.keep.equal(first.keep[:, p])


@pytest.mark.parametrize(("name", "kind"), GREEDY)
def test_ties_go_to_the_lower_index(name, kind):
    """Every token has an identical copy further right: of two equals the left one is chosen first."""
    half = random_problem(kind, 2, batch=2, tokens=8, k=4)
    twice = torch.arange(16) % 8
    problem = SubsetProblem.build(
        kind, 4,
        unary=None if half.unary is None else half.unary[:, twice].float(),
        pairwise=None if half.pairwise is None else half.pairwise[:, twice][:, :, twice].float(),
        threshold=half.threshold,
        group=None if half.group is None else half.group[:, twice],
        quota=half.quota,
    )  # fmt: skip
    params = {"pivots": 2} if name == "pivot" else {}
    solution = solver(name, **params).solve(problem)
    for keep in solution.keep:
        right = keep[8:].nonzero().squeeze(1)
        assert keep[right].all(), "a copy was kept without its original"
    assert solution.keep[:, :8].any()


@pytest.mark.parametrize("kind", KINDS)
def test_constant_input_keeps_the_first_tokens(kind):
    flat = torch.ones(1, 6, 6)
    pairwise = None if kind in ("top_k", "quota") else torch.eye(6)[None] if kind == "log_det" else flat
    group = torch.zeros(1, 6, dtype=torch.int64)
    problem = SubsetProblem.build(
        kind,
        3,
        unary=torch.ones(1, 6),
        pairwise=pairwise,
        threshold=2.0,
        group=group,
        quota=torch.tensor([[3]]),
    )
    walks = set(names(kind)) - {"milp", "branch_and_bound", "pivot"}
    assert len(walks) > 1
    for name in walks:
        assert kept(solver(name).solve(problem)) == [0, 1, 2], name


@pytest.mark.parametrize("kind", KINDS)
def test_swap_gains_equal_differences_of_the_objective(kind):
    problem = random_problem(kind, 6, ragged=True, anchors=kind in ("max_min", "max_sum"))
    start = solver("greedy_conflict", on_shortfall="stop") if kind == "independent_set" else None
    keep = start.solve(problem).keep if start else solver("local_search", rounds=1).solve(problem).keep
    gain = problem.rules.swap_gains(problem, keep)
    value, compared = problem.value(keep), 0
    for b in range(2):
        chosen = set(keep[b].nonzero().squeeze(1).tolist())
        for i in chosen:
            for j in set(problem.real[b].nonzero().squeeze(1).tolist()) - chosen:
                after = slow_value(problem, b, tuple(sorted(chosen - {i} | {j})))
                expected = after - value[b].item()
                assert gain[b, i, j].item() == pytest.approx(expected, abs=1e-9)
                compared += math.isfinite(expected)
    assert compared > 5


@pytest.mark.parametrize(("start", "kind"), [(n, k) for n, k in GREEDY if n != "pivot"])
def test_local_search_never_loses_and_ends_in_a_local_optimum(start, kind):
    problem = random_problem(kind, 7, tokens=14, k=5)
    first = solver(start).solve(problem)
    better = solver("local_search", start=start).solve(problem)
    assert (better.value >= first.value).all()
    if not problem.broken(first.keep).any():
        gain, scale = problem.rules.swap_gains(problem, better.keep), problem.magnitude(better.keep)
        legal = better.keep[:, :, None] & ~better.keep[:, None, :]
        assert (gain[legal] <= 1e-9 * scale.max()).all()


def test_local_search_refuses_a_start_of_another_kind():
    with pytest.raises(SpecError, match="stable_top_k"):
        solver("local_search", start="stable_top_k").solve(random_problem("max_min"))


@pytest.mark.parametrize("seed", range(4))
def test_lazy_and_plain_gains_give_the_same_walk(seed):
    problem = random_problem("facility_location", seed, batch=3, tokens=60, k=20, ragged=True, protect=True)
    lazy, plain = (solver("lazy_greedy", lazy=w).solve(problem) for w in ("always", "never"))
    assert lazy.order.equal(plain.order)
    chosen: list[int] = []
    keep = torch.zeros(1, 60, dtype=torch.bool)
    for step, token in enumerate(lazy.order[0].tolist()):
        if step:  # the protected token comes first
            values = []
            for j in range(60):
                trial = keep.clone()
                trial[0, j] = True
                single = SubsetProblem.build(
                    "facility_location",
                    len(chosen) + 1,
                    unary=problem.unary[:1],
                    pairwise=problem.pairwise[:1],
                )
                values.append(-math.inf if j in chosen else single.value(trial).item())
            assert values[token] == pytest.approx(max(values), rel=1e-12)
        chosen.append(token)
        keep[0, token] = True


def test_greedy_log_det_equals_greedy_by_determinants():
    problem = random_problem("log_det", 3, batch=2, tokens=15, k=6, width=20)
    order = solver("greedy_log_det").solve(problem).order
    for b in range(2):
        chosen: list[int] = []
        for token in order[b].tolist():
            keep = torch.zeros(2, 15, dtype=torch.bool)
            single = SubsetProblem.build(
                "log_det", len(chosen) + 1, unary=problem.unary, pairwise=problem.pairwise
            )
            values = []
            for j in range(15):
                trial = keep.clone()
                trial[:, [*chosen, j]] = True
                values.append(-math.inf if j in chosen else single.value(trial)[b].item())
            assert values[token] == pytest.approx(max(values), abs=1e-9)
            chosen.append(token)


def test_greedy_log_det_survives_a_kernel_of_low_rank():
    g = torch.Generator().manual_seed(0)
    x = unit(2, 30, 5, g).float()
    quality = torch.rand(2, 30, generator=g) + 0.1
    solution = solver("greedy_log_det").solve(
        SubsetProblem.build("log_det", 12, unary=quality, pairwise=x @ x.transpose(1, 2))
    )
    assert (solution.keep.sum(1) == 12).all()
    assert solution.stats["rank"].tolist() == [5, 5]
    for b in range(2):
        early, late = solution.order[b, :5].tolist(), solution.order[b, 5:].tolist()
        rest = [i for i in quality[b].argsort(descending=True, stable=True).tolist() if i not in early]
        assert late == rest[:7]
    assert not solution.value.isnan().any()


def test_zero_kernel_and_zero_quality_keep_exact_counts():
    for quality in (None, torch.zeros(1, 5)):
        problem = SubsetProblem.build("log_det", 3, unary=quality, pairwise=torch.zeros(1, 5, 5))
        solution = solver("greedy_log_det").solve(problem)
        assert kept(solution) == [0, 1, 2]
        assert solution.value.item() == -math.inf


def test_bad_problems_are_refused_by_name():
    square = torch.eye(4)[None]
    nan = square.clone()
    nan[0, 1, 2] = math.nan
    inf = torch.tensor([[1.0, math.inf, 0, 0]])
    quota = {"group": torch.zeros(1, 4, dtype=torch.int64)}
    for match, build in (
        ("pairwise is not finite in sample 0", lambda: SubsetProblem.build("max_min", 2, pairwise=nan)),
        ("unary is not finite in sample 0", lambda: SubsetProblem.build("top_k", 2, unary=inf)),
        (
            "cannot choose 5 of 4 tokens in sample 0",
            lambda: SubsetProblem.build("max_min", 5, pairwise=square),
        ),
        ("cannot choose 0 of 4", lambda: SubsetProblem.build("max_min", 0, pairwise=square)),
        (
            "anchors hold NaN",
            lambda: SubsetProblem.build(
                "max_min", 2, pairwise=square, anchors=torch.full((1, 1, 4), math.nan)
            ),
        ),
        (
            "sum to 3, but k is 2",
            lambda: SubsetProblem.build(
                "quota", 2, unary=torch.ones(1, 4), quota=torch.tensor([[3]]), **quota
            ),
        ),
        (
            "has only 0 tokens but its quota is 1",
            lambda: SubsetProblem.build(
                "quota", 2, unary=torch.ones(1, 4), quota=torch.tensor([[1, 1]]), **quota
            ),
        ),
        ("does not solve top_k", lambda: solver("farthest_point").solve(random_problem("top_k"))),
        (
            "needs scores",
            lambda: solver("farthest_point", seed="unary").solve(
                SubsetProblem.build("max_min", 2, pairwise=square)
            ),
        ),
    ):
        with pytest.raises(ProblemError, match=match):
            build()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_problems_are_solved_in_float32(dtype):
    x = unit(2, 20, 8, torch.Generator().manual_seed(0)).to(dtype)
    problem = SubsetProblem.build("max_min", 6, pairwise=1 - x @ x.transpose(1, 2))
    assert problem.pairwise.dtype == torch.float32
    assert (solver("farthest_point").solve(problem).keep.sum(1) == 6).all()


def _loop_farthest(distance: torch.Tensor, k: int) -> list[list[int]]:
    """The obvious way: one sample at a time, the minimum over all chosen rows anew in every round."""
    out = []
    for d in distance:
        chosen = [int(d.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(chosen) < k:
            near = d[chosen].min(0).values
            near[chosen] = -1
            chosen.append(int(near.argmax()))
        out.append(chosen)
    return out


def _loop_log_det(kernel: torch.Tensor, k: int) -> list[list[int]]:
    """The obvious way: residual variances from a fresh factorisation of the chosen block in every round."""
    out = []
    for m in kernel:
        chosen = [int(m.diagonal().argmax())]
        while len(chosen) < k:
            root = torch.linalg.cholesky(m[chosen][:, chosen])
            solved = torch.linalg.solve_triangular(root, m[chosen], upper=False)
            left = m.diagonal() - solved.square().sum(0)
            left[chosen] = -1
            chosen.append(int(left.argmax()))
        out.append(chosen)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "loop"),
    [("farthest_point", "max_min", _loop_farthest), ("greedy_log_det", "log_det", _loop_log_det)],
)
def test_batched_greedy_picks_what_the_obvious_loop_picks(name, kind, loop):
    x = unit(8, 576, 256, torch.Generator().manual_seed(0)).float()
    gram = x @ x.transpose(1, 2)
    pairwise = 1 - gram if kind == "max_min" else gram
    problem = SubsetProblem.build(kind, 64, pairwise=pairwise)
    assert solver(name).solve(problem).order.tolist() == loop(pairwise, 64)
