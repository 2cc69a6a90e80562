"""What greedy subset solvers share: seeds, the bookkeeping of a walk, and the result."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry

SEEDS = ("max_nn_distance", "max_mean_distance", "unary", "first")


def check_kind(solver: SubsetSolver, problem: SubsetProblem) -> None:
    """Raise ProblemError when `solver` does not solve this kind of problem."""
    if problem.kind not in solver.kinds:
        known = ", ".join(sorted(solver.kinds))
        raise ProblemError(f"solver {solver.name!r} does not solve {problem.kind}; it solves {known}")


def clean_pairwise(problem: SubsetProblem) -> Tensor:
    """`[B,N,N]` with zeros at padding, where anything may stand; no copy without a mask."""
    assert problem.pairwise is not None
    if problem.mask is None:
        return problem.pairwise
    return problem.pairwise.masked_fill(~(problem.mask[:, :, None] & problem.mask[:, None, :]), 0)


def needed_unary(solver: SubsetSolver, problem: SubsetProblem, *, why: str) -> Tensor:
    """`unary` with -inf at padding; ProblemError when the problem has none."""
    if problem.unary is None:
        raise ProblemError(f"{solver.name} needs scores (unary) for {why}; give the problem a score")
    return problem.unary.masked_fill(~problem.real, -math.inf)


def seed_score(rule: str, solver: SubsetSolver, *, problem: SubsetProblem, pairwise: Tensor) -> Tensor:
    """`[B,N]` whose largest real entry is the first token of a walk over distances.

    `max_nn_distance`: distance to the nearest other token (DivPrune); `max_mean_distance`: mean distance to
    the others (TrimTokenator, ZSPAPrune ports); `unary`: the scores; `first`: the lowest index.
    """
    if rule == "unary":
        return needed_unary(solver, problem, why="its seed")
    if rule == "first":
        score = torch.zeros(problem.shape, device=pairwise.device)
    elif rule == "max_mean_distance":
        total = pairwise.sum(1, dtype=torch.float64)  # compared as float32: equal tokens stay equal
        score = (total - pairwise.diagonal(dim1=1, dim2=2)).to(pairwise.dtype)
    else:
        other = pairwise.clone()
        other.diagonal(dim1=1, dim2=2).fill_(math.inf)
        if problem.mask is not None:
            other.masked_fill_(~problem.mask[:, :, None], math.inf)
        score = other.amin(1)
    return score.masked_fill(~problem.real, -math.inf)


class Walk:
    """Bookkeeping of a greedy walk over `[B,N]` tokens.

    `take(score)` picks per sample the free real token with the largest score, ties to the lower index;
    protected tokens come first, lowest index first.  A sample that has its `k` tokens records nothing more.
    """

    def __init__(self, problem: SubsetProblem):
        self.started = time.perf_counter()
        self.problem = problem
        self.rounds = min(problem.most, problem.shape[1])
        self.device = problem.k.device
        self.rows = torch.arange(problem.shape[0], device=self.device)
        self.taken = ~problem.real
        self.forced = None if problem.protected is None else problem.protected & problem.real
        self.order = torch.full((problem.shape[0], self.rounds), -1, dtype=torch.int64, device=self.device)
        self.round = 0

    def take(self, score: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`[B]` picks; where `allowed` `[B]` is False the sample records nothing in this round."""
        score = score.masked_fill(self.taken, -math.inf)
        if self.forced is not None:
            score = score.masked_fill(self.forced, math.inf)
        pick = score.argmax(1, keepdim=True)
        live = self.problem.k > self.round
        if allowed is not None:
            live = live & allowed
        self.order[:, self.round] = torch.where(live, pick.squeeze(1), -1)
        self.taken.scatter_(1, pick, True)
        if self.forced is not None:
            self.forced = self.forced & ~self.taken
        self.round += 1
        return pick.squeeze(1)

    def solution(
        self, solver: SubsetSolver, status: Status = Status.HEURISTIC, **stats: object
    ) -> SubsetSolution:
        return ordered_solution(
            self.problem, self.order, solver=solver, started=self.started, status=status, **stats
        )


def greedy_answer(problem: SubsetProblem, solver: SubsetSolver) -> SubsetSolution:
    """The answer of the kind's greedy rule; where it has none, the first tokens, in the name of `solver`."""
    params = dict(problem.rules.greedy)
    if params:
        greedy: type[SubsetSolver] = registry("solvers").get(params.pop("kind"))
        return greedy.from_spec(params).solve(problem)
    walk, zero = Walk(problem), torch.zeros(problem.shape, device=problem.k.device)
    for _ in range(walk.rounds):
        walk.take(zero)
    return walk.solution(solver)


def ordered_solution(
    problem: SubsetProblem,
    order: Tensor,
    *,
    solver: SubsetSolver,
    started: float,
    status: Status = Status.HEURISTIC,
    **stats: object,
) -> SubsetSolution:
    """The result of a walk from its order of picks `[B,K]`, -1 after the last pick of a sample."""
    batch, tokens = problem.shape
    keep = torch.zeros(batch, tokens + 1, dtype=torch.bool, device=order.device)
    keep.scatter_(1, torch.where(order < 0, tokens, order), True)
    return SubsetSolution(
        seconds=time.perf_counter() - started,
        stats={"rounds": order.shape[1], **stats},
        problem=problem,
        keep=keep[:, :tokens],
        order=order,
        ended=(status,) * batch,
        solver=solver.name,
    )
