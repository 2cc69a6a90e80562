"""Branch and bound for log-determinants and max-min dispersion."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np

from pruneopt.parts import SubsetSolver, param
from pruneopt.problems import SubsetProblem
from pruneopt.solution import Status, SubsetSolution
from pruneopt.solvers.exact import Answer, Decision, first_answer, max_min_bisection, solve_samples
from pruneopt.solvers.objectives import symmetric_pairwise, unary_or
from pruneopt.solvers.walk import check_kind


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

    `log_det`: best-first search that decides on the token with the largest conditional variance; a node is
    bounded by the smaller of the Hadamard and the eigenvalue bound of its conditional kernel (Ko, Lee,
    Queyranne 1995).  `max_min`: bisection over distances, each step a clique search with colour bounds
    (Tomita et al. 2010).  `nodes` and `time_limit` hold per sample; past them the status is TIME_LIMIT.
    Some 40 tokens for log_det and 100 for max_min are practical.  Works on the host.
    """

    name: ClassVar[str] = "branch_and_bound"
    source: ClassVar[str] = "Ko, Lee, Queyranne 1995; Tomita et al. 2010"
    kinds: ClassVar[frozenset[str]] = frozenset({"log_det", "max_min"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "host", "time_limit"})
    nodes: int = param(200_000, low=1, doc="most nodes per sample")
    time_limit: float = param(60.0, above=0, doc="seconds per sample")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        used: list[int] = []

        def one(single: SubsetProblem) -> Answer:
            limit = _Limit(self.nodes, self.time_limit)
            answer = _log_det(single, limit) if single.kind == "log_det" else _max_min(single, limit)
            used.append(limit.used)
            return answer

        return solve_samples(self, problem, one, nodes=used)


def _forced(problem: SubsetProblem) -> list[int]:
    return [] if problem.protected is None else problem.protected[0].nonzero().squeeze(1).tolist()


def _condition(kernel: np.ndarray, at: int) -> tuple[np.ndarray, float]:
    """Schur complement after choosing row `at`, without that row, and the log of its variance."""
    variance = kernel[at, at]
    rest = np.delete(np.arange(len(kernel)), at)
    column = kernel[rest, at]
    if variance <= 0:
        return kernel[np.ix_(rest, rest)], -math.inf
    return kernel[np.ix_(rest, rest)] - np.outer(column, column) / variance, math.log(variance)


def _node_bound(kernel: np.ndarray, missing: int) -> float:
    if missing == 0:
        return 0.0
    diagonal = np.sort(kernel.diagonal())[::-1][:missing]
    hadamard = np.log(diagonal).sum() if diagonal[-1] > 0 else -math.inf
    eigen = np.linalg.eigvalsh(kernel)[::-1][:missing] + 1e-15 * len(kernel) * max(diagonal[0], 0)
    spectral = np.log(eigen).sum() if eigen[-1] > 0 else -math.inf
    return float(min(hadamard, spectral))


def _log_det(problem: SubsetProblem, limit: _Limit) -> Answer:
    quality = unary_or(problem, 1.0)[0].cpu().numpy()
    whole = symmetric_pairwise(problem)[0].cpu().numpy() * np.outer(quality, quality)
    k = int(problem.k[0])
    best, value = first_answer(problem)
    left = np.flatnonzero(problem.real[0].cpu().numpy())
    kernel, chosen, gained = whole[np.ix_(left, left)], [], 0.0
    for token in _forced(problem):
        at = int(np.flatnonzero(left == token)[0])
        kernel, log = _condition(kernel, at)
        left, gained = np.delete(left, at), gained + log
        chosen.append(token)
    tie = count()
    heap = [(-(gained + _node_bound(kernel, k - len(chosen))), next(tie), chosen, left, kernel, gained)]
    while heap:
        negative, _, chosen, left, kernel, gained = heapq.heappop(heap)
        slack = 1e-10 * max(1.0, abs(value)) if math.isfinite(value) else 0.0
        if -negative <= value + slack:
            break
        if limit.reached():
            return Answer(best, max(-negative, value), Status.TIME_LIMIT)
        at = int(np.argmax(kernel.diagonal()))
        inner, log = _condition(kernel, at)
        rest = np.delete(left, at)
        more = [*chosen, int(left[at])]
        if len(more) == k:
            if gained + log > value:
                best, value = more, gained + log
        else:
            bound = gained + log + _node_bound(inner, k - len(more))
            if bound > value:
                heapq.heappush(heap, (-bound, next(tie), more, rest, inner, gained + log))
        if len(rest) >= k - len(chosen):
            outer = np.delete(np.delete(kernel, at, 0), at, 1)
            bound = gained + _node_bound(outer, k - len(chosen))
            if bound > value:
                heapq.heappush(heap, (-bound, next(tie), chosen, rest, outer, gained))
    return Answer(best, value, Status.OPTIMAL)


def _max_min(problem: SubsetProblem, limit: _Limit) -> Answer:
    k = int(problem.k[0])
    forced = _forced(problem)

    def decide(close: np.ndarray, usable: np.ndarray) -> Decision:
        apart = ~close
        np.fill_diagonal(apart, False)
        if not usable[forced].all() or close[np.ix_(forced, forced)][~np.eye(len(forced), dtype=bool)].any():
            return None
        places = [int(i) for i in np.flatnonzero(usable) if apart[i, forced].all() and i not in forced]
        places.sort(key=lambda i: -int(apart[i, places].sum()))
        bits = [sum(1 << j for j, q in enumerate(places) if apart[p, q]) for p in places]
        found = _clique(bits, (1 << len(places)) - 1, k - len(forced), limit)
        return found if found is None or isinstance(found, str) else forced + [places[i] for i in found]

    return max_min_bisection(problem, decide)


def _clique(adjacent: list[int], candidates: int, size: int, limit: _Limit) -> Decision:
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
        inner = _clique(adjacent, candidates & adjacent[v], size - 1, limit)
        if inner is not None:
            return inner if isinstance(inner, str) else [v, *inner]
        candidates &= ~(1 << v)
    return None
