"""Checks of what certificates promise; `test_certificates` runs them, and on planted bugs."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from subset_cases import KINDS, names, random_problem, slow_best, slow_value, solver, unit

from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem

LOOSE = 1e-6  # milp states it; everything else is held to 1e-9


def scaled(kind: str, seed: int, scale: float, offset: float, **shape: bool) -> SubsetProblem:
    """`random_problem` with the numbers of its objective multiplied by `scale` and moved by `offset` of it.

    Scores move in kinds that choose exactly k of them, distances and similarities in the others.
    """
    problem = random_problem(kind, seed, **shape)
    scores = kind in ("top_k", "quota", "independent_set", "max_sum")
    pairs = kind not in ("top_k", "quota", "independent_set")
    shift = 0.0 if kind in ("log_det", "independent_set") else offset
    unary, pairwise, anchors = problem.unary, problem.pairwise, problem.anchors
    return replace(
        problem,
        unary=unary if unary is None or not scores else (unary + shift) * scale,
        pairwise=pairwise if pairwise is None or not pairs else (pairwise + shift) * scale,
        anchors=None if anchors is None else (anchors + shift) * scale,
    )


def size_of(problem: SubsetProblem, b: int, chosen: tuple[int, ...]) -> float:
    """The unit of the tolerance, from its definition: the objective over absolute numbers."""
    if problem.kind == "log_det":
        return len(chosen)
    terms = {name: getattr(problem, name) for name in ("unary", "pairwise", "anchors")}
    sizes = {name: tensor.abs() for name, tensor in terms.items() if tensor is not None}
    return abs(slow_value(replace(problem, threshold=math.inf, **sizes), b, chosen))


def ordered(problem: SubsetProblem, solution: SubsetSolution, label: str, exact: bool) -> None:
    """Value, optimum by enumeration and bound are in this order; exact solvers reach the optimum."""
    for b in range(problem.shape[0]):
        best, where = slow_best(problem, b)
        size = size_of(problem, b, where)
        chosen = tuple(solution.keep[b].nonzero()[:, 0].tolist())
        value, bound = float(solution.value[b]), float(solution.upper_bound[b])
        tight = 1e-9 * size
        assert math.isclose(value, slow_value(problem, b, chosen), rel_tol=1e-9, abs_tol=tight), label
        assert value <= best + tight, f"{label}: {value} above the optimum {best}"
        assert bound >= best - tight, f"{label}: bound {bound} below the optimum {best}"
        assert bound >= value - tight, f"{label}: bound {bound} below the value {value}"
        if exact:
            slack = (LOOSE if label.startswith("milp") else 1e-9) * size
            assert value >= best - slack, f"{label}: {value} is not the optimum {best}"
            assert solution.status[b] is Status.OPTIMAL, f"{label}: {solution.status[b]}"


def every_solver(kind: str, seed: int, exponent: int, offset: float = 0.0, **shape: bool) -> None:
    """All solvers of a kind on one problem at scale `10 ** exponent`."""
    problem = scaled(kind, seed, 10.0**exponent, offset, tokens=8, **shape)
    for name in names(kind):
        if name == "pivot" and problem.unary is None:
            continue
        part = solver(name, **({"pivots": 2} if name == "pivot" else {}))
        label = f"{name} on {kind} at 1e{exponent} + {offset}"
        ordered(problem, part.solve(problem), label, "exact" in part.tags)


def check_scales() -> None:
    """Every solver of every kind is right at the ends of the range of scales, with and without an offset."""
    for kind in KINDS:
        for exponent, offset in ((-15, 0.0), (-6, 1e3), (15, 0.0)):
            every_solver(kind, 3, exponent, offset)


def check_milp_on_small_scores() -> None:
    """Scores of 1e-6 whose sum HiGHS, left to its absolute tolerances, finds good enough anywhere."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        scores = 1e-6 * torch.rand(1, 36, generator=g, dtype=torch.float64)
        problem = SubsetProblem.build("top_k", 9, unary=scores)
        solution = solver("milp").solve(problem)
        best = scores.topk(9).values.sum()
        assert solution.value[0] >= best * (1 - LOOSE), f"seed {seed}: not the optimum"
        assert solution.upper_bound[0] >= best * (1 - 1e-9), f"seed {seed}: bound below the optimum"
        assert solution.status == (Status.OPTIMAL,)


def check_milp_on_a_common_offset() -> None:
    """Scores that differ in the ninth digit: only what they differ by may reach the solver."""
    g = torch.Generator().manual_seed(0)
    small = torch.rand(1, 36, generator=g, dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        problem = SubsetProblem.build("top_k", 9, unary=scale * (small + 1e8))
        solution = solver("milp").solve(problem)
        assert solution.keep[0].nonzero()[:, 0].tolist() == sorted(small[0].topk(9).indices.tolist())


def check_milp_on_odd_objectives() -> None:
    """What no choice can change, and what no choice can contain, must not blur the bound."""
    flat = SubsetProblem.build("top_k", 2, unary=torch.full((1, 5), 3e-12, dtype=torch.float64))
    far = 1e9 * unit(1, 5, 3, torch.Generator().manual_seed(0))[0]
    far = far @ far.T
    scores = torch.tensor([[1e-6, 3e-6, 2e-6, 5e-6, 4e-6]], dtype=torch.float64)
    single = SubsetProblem.build("max_sum", 1, unary=scores, pairwise=far[None])
    closed = SubsetProblem.build(
        "quota", 1, unary=scores + torch.tensor([0.0, 0.0, 0.0, 1e9, 1e9]),
        group=torch.tensor([[0, 0, 0, 1, 1]]), quota=torch.tensor([[1, 0]]),
    )  # fmt: skip
    for problem, best in ((flat, 6e-12), (single, 5e-6), (closed, 3e-6)):
        found = solver("milp").solve(problem)
        assert found.status == (Status.OPTIMAL,), (problem.kind, found.status)
        assert math.isclose(found.value.item(), best, rel_tol=LOOSE)
        assert best * (1 - 1e-9) <= found.upper_bound.item() <= best * (1 + LOOSE)


def low_rank(seed: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    x = unit(2, 9, width, torch.Generator().manual_seed(seed)).to(dtype)
    return x @ x.transpose(1, 2)


def check_log_det_of_low_rank() -> None:
    """Gram matrices of low rank: values never above bounds, branch and bound equal to enumeration.

    Up to the rank the optimum is the enumerated one; beyond it every choice is singular and worth -inf,
    whatever sign rounding gives the eigenvalues that are zero.
    """
    for dtype in (torch.float32, torch.float64):
        for seed in range(3):
            for width, k in ((3, 3), (4, 4), (4, 6), (5, 5), (3, 5)):
                quality = 0.1 + torch.rand(2, 9, generator=torch.Generator().manual_seed(seed)).to(dtype)
                problem = SubsetProblem.build(
                    "log_det", k, unary=quality, pairwise=low_rank(seed, width, dtype)
                )
                best = solver("brute_force").solve(problem)
                assert bool((best.value == -math.inf).all()) == (k > width), (seed, width, k, best.value)
                for name in ("branch_and_bound", "local_search", "greedy_log_det"):
                    found = solver(name).solve(problem)
                    assert bool((found.value <= best.value + 1e-9).all()), (name, seed, width, k)
                    assert bool((found.upper_bound >= best.value - 1e-9).all()), (name, seed, width, k)
                    if name == "branch_and_bound":
                        torch.testing.assert_close(found.value, best.value, rtol=0, atol=1e-9)
                        assert all(s is Status.OPTIMAL for s in found.status)


def check_branch_and_bound_searches() -> None:
    """Kernels on which swaps end in a local optimum: the search itself must find the better choice."""
    for seed in (15, 40, 44):
        problem = random_problem("log_det", seed, batch=4, tokens=12, k=5, width=6)
        best, swapped = (solver(name).solve(problem).value for name in ("brute_force", "local_search"))
        assert bool((best > swapped + 0.05).any())
        found = solver("branch_and_bound").solve(problem)
        torch.testing.assert_close(found.value, best, rtol=0, atol=1e-9)


def check_log_det_counts_definite_blocks() -> None:
    """Even numbers of negative eigenvalues make a positive determinant, and still no variance."""
    block = torch.diag(torch.tensor([1.0, 1.0, -2.0, -2.0], dtype=torch.float64))[None]
    problem = SubsetProblem.build("log_det", 4, pairwise=block, check=False)
    keep = torch.ones(1, 4, dtype=torch.bool)
    assert (
        SubsetSolution(0.0, problem=problem, keep=keep, ended=(Status.HEURISTIC,)).value.item() == -math.inf
    )


def check_claims_need_a_bound() -> None:
    """OPTIMAL beside a far bound is UNPROVED; a bound below the value is INVALID and stays visible."""
    problem = SubsetProblem.build("top_k", 2, unary=torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64))
    keep = torch.tensor([[True, True, False]])

    def said(status: Status, bound: float) -> SubsetSolution:
        proved = torch.tensor([bound], dtype=torch.float64)
        return SubsetSolution(0.0, problem=problem, keep=keep, ended=(status,), proved_bound=proved)

    assert said(Status.OPTIMAL, 5.0).status == (Status.OPTIMAL,)
    assert said(Status.OPTIMAL, 5.0 + 4e-9).status == (Status.OPTIMAL,)
    assert said(Status.OPTIMAL, 5.0 + 6e-9).status == (Status.UNPROVED,)
    assert said(Status.OPTIMAL, math.inf).status == (Status.UNPROVED,)
    assert said(Status.OPTIMAL, math.nan).status == (Status.UNPROVED,)
    assert said(Status.TIME_LIMIT, math.inf).status == (Status.TIME_LIMIT,)
    for claim in (Status.OPTIMAL, Status.TIME_LIMIT, Status.HEURISTIC):
        wrong = said(claim, 4.5)
        assert wrong.status == (Status.INVALID,)
        assert not wrong.status[0].ok and not wrong.status[0].proved
        assert wrong.gap.item() == -0.5
    assert said(Status.INFEASIBLE, math.inf).status == (Status.INFEASIBLE,)
    short = replace(said(Status.OPTIMAL, 5.0), keep=torch.tensor([[True, False, True]]), proved_bound=None)
    assert short.status == (Status.UNPROVED,)  # a wrong answer of a solver that proves nothing itself


def check_bounds_of_samples_are_kept() -> None:
    """What a solver proves for a sample reaches the solution as it is, also where it is too low."""
    from pruneopt.parts.solvers._exact import Answer, solve_samples

    problem = SubsetProblem.build(
        "top_k", 1, unary=torch.tensor([[3.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    )
    bounds = iter((2.5, 3.0))
    found = solve_samples(solver("milp"), problem, one=lambda _: Answer([0], next(bounds), Status.OPTIMAL))
    assert found.upper_bound.tolist() == [2.5, 3.0]
    assert found.status == (Status.INVALID, Status.OPTIMAL)
