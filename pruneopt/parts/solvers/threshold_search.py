"""Threshold search for max-min dispersion.

Problem: `max_S min_{i != j in S} d_ij`, distances to anchors included.  It is a question asked of levels: are
there k tokens of which no two are closer than that?  Update: of the chosen tokens the one with most others
too close leaves, and the token outside with fewest takes its place; both then rest for some moves, so that
the walk does not turn back (tabu search).  Levels are bisected between the value reached and the last one
that was not.  Sources: Sayah and Irnich 2017 (levels), Glover 1989 (tabu), Porumbel, Hao and Glover 2011 (for
max-min dispersion).
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, started_from
from pruneopt.problems.kinds._terms import anchor_min, distances
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem

COMES, GOES = 5, 2  # most moves that a token which left stays out, and that one which came stays in
_TURN, _NEVER = 1 << 24, 1 << 60  # more than any number of moves, and than any rank


@dataclass(frozen=True)
class ThresholdSearch(SubsetSolver):
    """Max-min dispersion by tabu search over `levels` thresholds, with at most `moves` swaps at each.

    Deterministic: of equal tokens the one that has not moved for longest moves, then the lower index; so
    which of several choices of equal value is found depends on the order of the tokens.  Protected tokens
    never leave, and the value is never below that of the start (`start=auto`: the greedy rule).  No claim of
    optimality.  O(N) a move, O(N^2) a level.  Works on the host, one sample after another.
    """

    name: ClassVar[str] = "threshold_search"
    source: ClassVar[str] = "Sayah and Irnich 2017; Porumbel, Hao and Glover 2011"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_min"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "host", "uses_order"})
    start: str = param("auto", doc="name of the solver that gives the first answer")
    levels: int = param(12, low=1, doc="most thresholds asked for")
    moves: int = param(1000, low=1, high=1_000_000, doc="most swaps at a threshold")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        first = started_from(self.start, self, problem=problem)
        keep, moves = first.keep.clone(), []
        for b, before in enumerate(first.value.tolist()):
            chosen, made = self._one(first.problem.sample(b), keep[b].cpu().numpy(), value=before)
            keep[b] = torch.from_numpy(chosen)
            moves.append(made)
        return SubsetSolution(
            seconds=time.perf_counter() - started,
            stats={"moves": moves, "start": first.solver},
            problem=first.problem,
            keep=keep,
            ended=(Status.HEURISTIC,) * len(keep),
            solver=self.name,
        )

    def _one(self, problem: SubsetProblem, keep: np.ndarray, *, value: float) -> tuple[np.ndarray, int]:
        """The best choice `[N]` found for the only sample from `keep`, worth `value`, and moves made."""
        distance = distances(problem, math.inf)[0].cpu().numpy()
        outside = anchor_min(problem)[0].cpu().numpy()
        real = problem.real[0].cpu().numpy()
        fixed = ~real if problem.protected is None else ~real | problem.protected[0].cpu().numpy()
        known, moves = np.concatenate([distance.ravel(), outside]), 0
        high = _ceiling(distance[np.ix_(real, real)], outside[real], k=int(problem.k[0]))
        high = float(np.nextafter(high, math.inf))  # which itself may be reached
        for _ in range(self.levels):
            level = value + (high - value) / 2
            if not value < level < high < math.inf or not ((value < known) & (known < high)).any():
                break
            found, made = _apart(keep, distance < level, near=outside < level, fixed=fixed, moves=self.moves)
            moves += made
            if found is None:
                high = level
            else:
                keep = found
                value = float(min(distance[np.ix_(keep, keep)].min(), outside[keep].min()))
        return keep, moves


def _ceiling(distance: np.ndarray, outside: np.ndarray, *, k: int) -> float:
    """No k tokens are worth more: each needs k - 1 others, and all anchors, that far; +inf for one alone."""
    others = distance.copy()
    np.fill_diagonal(others, -math.inf)
    far = outside if k < 2 else np.minimum(np.sort(others, axis=1)[:, 1 - k], outside)
    return float(np.sort(far)[-k])


def _apart(
    keep: np.ndarray, close: np.ndarray, *, near: np.ndarray, fixed: np.ndarray, moves: int
) -> tuple[np.ndarray | None, int]:
    """A choice `[N]` after tabu moves from `keep` without a pair in `close`, or None; and moves made.

    near: `[N]` tokens too close to an anchor.  fixed: `[N]` tokens that neither come nor leave.
    """
    keep, pairs = keep.copy(), close.astype(np.int64) * _TURN
    wrong = pairs[keep].sum(0) + near * _TURN  # how many things are too close to each token, in turns
    left = int(wrong[keep].sum())
    # ranks beside `wrong`: minus the last move of those that may leave, the last move of those that may come
    leave = np.where(keep & ~fixed, COMES + 1, -_NEVER)
    come = np.where(keep | fixed, _NEVER, -COMES - 1)
    # fewer where there are few, else the walk is no longer drawn to what is best
    comes, goes = min(COMES, 1 + int((come < 0).sum()) // 8), min(GOES, 1 + int((leave > 0).sum()) // 16)
    came, went = deque[tuple[int, int]](), deque[tuple[int, int]]()  # who rests, since when
    for t in range(moves):
        if not left:
            return keep, t
        for rests, rank, turns, sign in ((came, leave, goes, -1), (went, come, comes, 1)):
            while rests and rests[0][0] < t - turns:
                since, token = rests.popleft()
                rank[token] = sign * since
        out = int((wrong + leave).argmax())
        after = wrong - pairs[out]
        into = int((after + come).argmin())
        if leave[out] == -_NEVER or come[into] == _NEVER:
            continue  # all that could move are resting
        left -= 2 * int(wrong[out]) - int(near[out]) * _TURN
        left += 2 * int(after[into]) - int(near[into]) * _TURN
        wrong = after + pairs[into]
        keep[out], keep[into] = False, True
        leave[out], come[into] = -_NEVER, _NEVER
        came.append((t, into))
        went.append((t, out))
    return (None if left else keep), moves
