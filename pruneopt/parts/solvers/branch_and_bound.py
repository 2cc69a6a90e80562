"""Branch and bound for log-determinants and max-min dispersion."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._exact import Answer, Decision, bisection, first_answer, solve_samples
from pruneopt.parts.solvers._walk import check_kind
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._ddgfact import factorised_bound
from pruneopt.problems.kinds.log_det import block_log_det, singular_below
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


class _Limit:
    """Nodes and seconds of one sample."""

    def __init__(self, nodes: int, seconds: float):
        self.nodes, self.until, self.used = nodes, time.perf_counter() + seconds, 0

    def reached(self) -> bool:
        self.used += 1
        return self.used > self.nodes or time.perf_counter() > self.until


@dataclass(frozen=True)
class BranchAndBound(SubsetSolver):
    """Exact optimum at small N, or the best choice and a proved bound when a limit is reached.

    Log-determinants (kinds that offer `kernel`): best-first search that decides on the token with the largest
    conditional variance; a node is bounded by the Hadamard and eigenvalue bounds of its conditional kernel
    (Ko, Lee, Queyranne 1995), when its turn comes by the factorised bound (Li and Xie 2024), and tokens that
    would make the choice singular are left out of it.  Max-min dispersion (kinds that offer `close`):
    bisection over levels, each step a clique search with colour bounds (Tomita et al. 2010).  `nodes` and
    `time_limit` hold per sample; past them the status is TIME_LIMIT.  Some 60 tokens for the first and 100
    for the second are practical.  Works on the host.
    """

    name: ClassVar[str] = "branch_and_bound"
    source: ClassVar[str] = "Ko, Lee, Queyranne 1995; Li and Xie 2024; Tomita et al. 2010"
    kinds = KindsOffering("kernel", "close")
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "host", "time_limit"})
    nodes: int = param(200_000, low=1, doc="most nodes per sample")
    time_limit: float = param(60.0, above=0, doc="seconds per sample")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        used: list[int] = []

        def one(single: SubsetProblem) -> Answer:
            limit = _Limit(self.nodes, self.time_limit)
            solve = _log_det if single.rules.offers("kernel") else _apart
            answer = solve(single, self, limit=limit)
            used.append(limit.used)
            return answer

        return solve_samples(self, problem, one=one, nodes=used)


def _forced(problem: SubsetProblem) -> list[int]:
    return [] if problem.protected is None else problem.protected[0].nonzero().squeeze(1).tolist()


@dataclass
class _Node:
    """Tokens `chosen`, worth `gained`, and the kernel of the tokens `left` conditioned on them."""

    chosen: list[int]
    gained: float
    left: np.ndarray
    kernel: np.ndarray

    def take(self, at: int, least: np.ndarray) -> _Node:
        """With token number `at` of `left` chosen; `left` keeps what may still follow.

        A conditional variance is never below the smallest eigenvalue of the block that ends with it, so
        tokens whose variance is at most `least` `[N]` make every choice singular and go.
        """
        variance, column = self.kernel[at, at], self.kernel[:, at]
        inner = self.kernel - np.outer(column, column) / variance
        stays = inner.diagonal() > least[self.left]
        stays[at] = False
        worth = self.gained + math.log(variance)
        return _Node([*self.chosen, int(self.left[at])], worth, self.left[stays], inner[np.ix_(stays, stays)])

    def drop(self, at: int) -> _Node:
        """With token number `at` of `left` ruled out."""
        stays = np.arange(len(self.left)) != at
        return _Node(self.chosen, self.gained, self.left[stays], self.kernel[np.ix_(stays, stays)])

    def bound(self, k: int) -> float:
        """No completion to `k` tokens is worth more; -inf where there is none."""
        missing = k - len(self.chosen)
        if missing > len(self.left):
            return -math.inf
        if missing == 0:
            return self.gained
        hadamard = np.log(np.sort(self.kernel.diagonal())[::-1][:missing]).sum()
        eigen = np.linalg.eigvalsh(self.kernel)[::-1]
        eigen = np.maximum(eigen[:missing], 0) + 1e-15 * len(eigen) * np.abs(eigen).max()
        return float(self.gained + min(hadamard, np.log(eigen).sum()))

    def tight_bound(self, k: int) -> float:
        """The same by the factorised bound, which costs many times as much and is far tighter at the root."""
        real = torch.ones(1, len(self.left), dtype=torch.bool)
        simplex = CappedSimplex(torch.tensor([k - len(self.chosen)]), real, ~real)
        return self.gained + float(factorised_bound(torch.from_numpy(self.kernel)[None], simplex, rounds=8))


def _log_det(problem: SubsetProblem, solver: SubsetSolver, *, limit: _Limit) -> Answer:
    kernel = problem.rules.kernel(problem)[0].cpu().numpy()
    k = int(problem.k[0])
    singular = singular_below(problem, problem.k).cpu()
    # half of what the objective calls singular, so that rounding on the way never rules out a sound choice
    least = float(singular) / 2 * kernel.diagonal()

    def worth(chosen: list[int]) -> float:
        block = torch.from_numpy(kernel[np.ix_(sorted(chosen), sorted(chosen))])
        return float(block_log_det(block[None], singular))

    best, value = first_answer(problem, solver)
    slack = 1e-10 * k
    able = np.flatnonzero(problem.real[0].cpu().numpy() & (kernel.diagonal() > np.maximum(least, 0)))
    node = _Node([], 0.0, able, kernel[np.ix_(able, able)])
    for token in _forced(problem):
        place = np.flatnonzero(node.left == token)
        if not len(place):  # it makes every choice singular
            return Answer(best, value, Status.OPTIMAL)
        node = node.take(int(place[0]), least)
    if len(node.chosen) == k:
        return Answer(best, value, Status.OPTIMAL)
    tie = count()
    heap = [(-node.bound(k), next(tie), node, False)]
    while heap:
        negative, _, node, tight = heapq.heappop(heap)
        if -negative <= value + slack:
            return Answer(best, max(-negative, value), Status.OPTIMAL)
        if limit.reached():
            return Answer(best, max(-negative, value), Status.TIME_LIMIT)
        if not tight:  # the dear bound only for nodes whose turn it is
            if (bound := min(-negative, node.tight_bound(k))) > value:
                heapq.heappush(heap, (-bound, next(tie), node, True))
            continue
        at = int(np.argmax(node.kernel.diagonal()))
        inner, outer = node.take(at, least), node.drop(at)
        if len(inner.chosen) == k:
            if (found := worth(inner.chosen)) > value:
                best, value = inner.chosen, found
        elif (bound := min(-negative, inner.bound(k))) > value:
            heapq.heappush(heap, (-bound, next(tie), inner, False))
        if (bound := min(-negative, outer.bound(k))) > value:
            heapq.heappush(heap, (-bound, next(tie), outer, False))
    return Answer(best, value, Status.OPTIMAL)


def _apart(problem: SubsetProblem, solver: SubsetSolver, *, limit: _Limit) -> Answer:
    k = int(problem.k[0])
    forced = _forced(problem)

    def decide(level: float) -> Decision:
        close, usable = problem.rules.close(problem, level)
        apart = ~close
        np.fill_diagonal(apart, False)
        if not usable[forced].all() or close[np.ix_(forced, forced)][~np.eye(len(forced), dtype=bool)].any():
            return None
        places = [int(i) for i in np.flatnonzero(usable) if apart[i, forced].all() and i not in forced]
        places.sort(key=lambda i: -int(apart[i, places].sum()))
        bits = [sum(1 << j for j, q in enumerate(places) if apart[p, q]) for p in places]
        found = _clique(bits, (1 << len(places)) - 1, size=k - len(forced), limit=limit)
        return found if found is None or isinstance(found, str) else forced + [places[i] for i in found]

    return bisection(problem, solver, decide=decide)


def _clique(adjacent: list[int], candidates: int, *, size: int, limit: _Limit) -> Decision:
    """A clique of `size` among `candidates` (a bit set), None if there is none, "unknown" at a limit."""
    if size == 0:
        return []
    if limit.reached():
        return "unknown"
    coloured: list[int] = []
    colours: list[int] = []
    uncoloured, colour = candidates, 0
    while uncoloured:  # tokens of one colour are pairwise too close, so a clique takes one of them
        colour += 1
        free = uncoloured
        while free:
            v = (free & -free).bit_length() - 1
            uncoloured &= ~(1 << v)
            free &= ~(1 << v) & ~adjacent[v]
            coloured.append(v)
            colours.append(colour)
    for v, bound in zip(reversed(coloured), reversed(colours), strict=True):
        if bound < size:
            return None
        inner = _clique(adjacent, candidates & adjacent[v], size=size - 1, limit=limit)
        if inner is not None:
            return inner if isinstance(inner, str) else [v, *inner]
        candidates &= ~(1 << v)
    return None
