"""What greedy subset solvers share: the bookkeeping of a walk, and the result.

Walks are written once for two libraries: on the host the arrays are NumPy's, which starts an operation in a
third of the time, elsewhere they are tensors, and nothing waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts import SubsetSolver
from pruneopt.problems.rows import Rows, Stored
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import rows_of
from pruneopt.registry import registry

Array = Any  # of NumPy or torch, see above


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
    if problem.mask is None:
        return problem.unary
    return problem.unary.masked_fill(~problem.mask, -math.inf)


def core_size(problem: SubsetProblem, share: float) -> Tensor:
    """`[B,1]` tokens that the largest scores take before a walk begins: `int(share k)`, at least one."""
    return (problem.k.double() * share).long().clamp_min(1)[:, None]


class Walk:
    """Bookkeeping of a greedy walk over `[B,N]` tokens.

    `xp` is the library of its arrays.  `scores` makes an array in which padding is -inf; `pick` finds the
    largest entry, ties to the lower index, and `close` makes it -inf.  What a rule does to its scores later
    must leave -inf as it is: then no round needs a mask.  Protected tokens come first, lowest index first.
    A sample that has its `k` tokens goes on, and what it picks then is forgotten.
    """

    def __init__(self, problem: SubsetProblem):
        self.started = time.perf_counter()
        self.problem = problem
        self.rounds = min(problem.most, problem.shape[1])
        self.device = problem.k.device
        self.host = self.device.type == "cpu"
        self.xp: Any = np if self.host else torch
        self.each = self.array(torch.arange(problem.shape[0], device=self.device))
        self.picks = torch.empty(problem.shape[0], self.rounds, dtype=torch.int64, device=self.device)
        self.order = self.array(self.picks)
        self.forced = None if problem.protected is None else self._forced(problem.protected & problem.real)
        self.round = 0
        if problem.pairwise is not None:
            self.pairs = rows_of(problem.pairwise)
            self.turned = self.pairs.turned()
            self.across, self.down = (self._reader(term) for term in (self.pairs, self.turned))

    @property
    def within(self) -> Tensor:
        """`[B,rounds]` bool: rounds in which a sample still chooses."""
        return torch.arange(self.rounds, device=self.device) < self.problem.k[:, None]

    @property
    def seeded(self) -> bool:
        """Whether protected tokens come before the first free choice of every sample, as far as is known."""
        return self.forced is not None and self.host and bool((self.forced[:, 0] >= 0).all())

    def array(self, tensor: Tensor) -> Array:
        """The same memory as an array of the walk."""
        return tensor.detach().numpy() if self.host else tensor

    def tensor(self, array: Array) -> Tensor:
        """The same memory as a tensor."""
        return torch.from_numpy(array) if self.host else array

    def scores(self, values: Tensor) -> Array:
        """A score `[B,N]` of the walk's own."""
        return self.array(values.masked_fill(~self.problem.real, -math.inf))

    def pick(self, score: Array) -> Array:
        """`[B]` the tokens of this round, by a score."""
        return self.record(score.argmax(1))

    def record(self, pick: Array) -> Array:
        """`[B]` the tokens of this round: `pick`, where no protected token comes first."""
        if self.forced is not None:
            first = self.forced[:, self.round]
            pick = self.xp.where(first >= 0, first, pick)
        self.order[:, self.round] = pick
        self.round += 1
        return pick

    def close(self, pick: Array, *scores: Array) -> None:
        """Make `pick` -inf in `scores`, from now on."""
        for score in scores:
            if self.host:
                score[self.each, pick] = -math.inf
            else:  # an assignment would wait for the device
                score.scatter_(1, pick[:, None], -math.inf)

    def take(self, score: Array, *others: Array) -> Array:
        """`pick`, closed in `score` and in `others`."""
        pick = self.pick(score)
        self.close(pick, score, *others)
        return pick

    def row(self, pick: Array) -> Array:
        """`[B,N]` row of the pairwise term at `pick`, 0 at padding."""
        return self.across(pick)

    def column(self, pick: Array) -> Array:
        """`[B,N]` column of the pairwise term at `pick`, 0 at padding."""
        return self.down(pick)

    def solution(
        self, solver: SubsetSolver, status: Status = Status.HEURISTIC, **stats: object
    ) -> SubsetSolution:
        order = self.picks.masked_fill_(~self.within, -1)
        return ordered_solution(
            self.problem, order, solver=solver, started=self.started, status=status, **stats
        )

    def _reader(self, term: Rows) -> Callable[[Array], Array]:
        """How to read rows of a term, as arrays."""
        mask = self.problem.mask
        if isinstance(term, Stored) and mask is None:
            matrix = self.array(term.matrix)
            if self.host and len(matrix) == 1:  # a view will do
                return lambda pick: matrix[:, pick[0]]
            return lambda pick: matrix[self.each, pick]
        if mask is None:
            return lambda pick: self.array(term.row(self.tensor(pick)))
        return lambda pick: self.array(term.row(self.tensor(pick)).masked_fill(~mask, 0))

    def _forced(self, protected: Tensor) -> Array:
        """`[B,rounds]` the protected tokens by index, then -1."""
        place = torch.arange(protected.shape[1], device=protected.device)
        first = place.masked_fill(~protected, protected.shape[1]).sort(1).values[:, : self.rounds]
        return self.array(first.masked_fill(first == protected.shape[1], -1))


def greedy_answer(problem: SubsetProblem, solver: SubsetSolver) -> SubsetSolution:
    """The answer of the kind's greedy rule; where it has none, the first tokens, in the name of `solver`."""
    return answer_of(problem.rules.greedy, solver, problem=problem)


def answer_of(rule: Mapping[str, Any], solver: SubsetSolver, *, problem: SubsetProblem) -> SubsetSolution:
    """The answer of a rule written as in a spec; of none, the first tokens, in the name of `solver`."""
    params = dict(rule)
    if params:
        found: type[SubsetSolver] = registry("solvers").get(params.pop("kind"))
        return found.from_spec(params).solve(problem)
    walk = Walk(problem)
    score = walk.scores(torch.zeros(problem.shape, device=walk.device))
    for _ in range(walk.rounds):
        walk.take(score)
    return walk.solution(solver)


def started_from(start: str, solver: SubsetSolver, *, problem: SubsetProblem) -> SubsetSolution:
    """The answer that a search starts from: of the solver named `start`, or for `auto` of the greedy rule.

    Raises SpecError where `start` does not solve this kind, or is the search itself.
    """
    if start == "auto":
        return greedy_answer(problem, solver)
    found = registry("solvers").get(start)()
    if not isinstance(found, SubsetSolver) or problem.kind not in found.kinds or found.name == solver.name:
        raise SpecError(f"{solver.name}.start {start!r} is not another solver of {problem.kind}")
    return found.solve(problem)


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
    keep.scatter_(1, order.remainder(tokens + 1), True)  # -1 is the column that is cut off
    return SubsetSolution(
        seconds=time.perf_counter() - started,
        stats={"rounds": order.shape[1], **stats},
        problem=problem,
        keep=keep[:, :tokens],
        order=order,
        ended=(status,) * batch,
        solver=solver.name,
    )
