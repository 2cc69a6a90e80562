"""Two correct subset solvers, and bad ones that each carry one bug."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers.brute_force import BruteForce
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class Good(SubsetSolver):
    """Farthest-point insertion from the largest score, the plain way, one sample after another."""

    name: ClassVar[str] = "good_farthest"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_min"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "factor_two_on_metrics"})

    def pick(self, score):
        return int(score.argmax())

    def distances(self, problem):
        return problem.pairwise

    def forced(self, problem, b):
        return [] if problem.protected is None else problem.protected[b].nonzero()[:, 0].tolist()

    def real(self, problem, b):
        return problem.real[b]

    def first(self, problem, b):
        return problem.unary[b]

    def next(self, distance, chosen):
        return distance[chosen].amin(0)

    def choose(self, problem, b):
        k = int(problem.k[b])
        out = self.forced(problem, b)
        real = self.real(problem, b)
        distance = self.distances(problem)[b]
        while len(out) < k:
            score = self.next(distance, out) if out else self.first(problem, b)
            score = score.clone().masked_fill(~real, -math.inf)
            score[out] = -math.inf
            out.append(self.pick(score))
        return out[:k]

    def refuse(self, problem):
        if problem.kind not in self.kinds:
            raise ProblemError(f"does not solve {problem.kind}")

    def result(self, **fields):
        return SubsetSolution(**fields)

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        self.refuse(problem)
        begin = time.perf_counter()
        keep = torch.zeros(problem.shape, dtype=torch.bool)
        for b in range(problem.shape[0]):
            keep[b, self.choose(problem, b)] = True
        return self.result(
            seconds=time.perf_counter() - begin,
            problem=problem,
            keep=keep,
            ended=(Status.HEURISTIC,) * problem.shape[0],
            solver=self.name,
        )


@dataclass(frozen=True)
class GoodExact(BruteForce):
    """Enumeration under another name."""

    name = "good_enumeration"


@dataclass(frozen=True)
class RepeatsTokens(Good):
    """Leaves chosen tokens in the race, so equal tokens are chosen twice (DivPrune in bfloat16)."""

    name = "repeats_tokens"

    def choose(self, problem, b):
        out = []
        while len(out) < int(problem.k[b]):
            score = self.next(problem.pairwise[b], out) if out else self.first(problem, b)
            out.append(int(score.masked_fill(~problem.real[b], -math.inf).argmax()))
        forced = [f for f in self.forced(problem, b) if f not in out]
        return forced + out[: len(out) - len(forced)]


@dataclass(frozen=True)
class DropsProtected(Good):
    """Does not look at `protected`."""

    name = "drops_protected"

    def forced(self, problem, b):
        return []


@dataclass(frozen=True)
class ChoosesPadding(Good):
    """Does not look at the mask."""

    name = "chooses_padding"

    def real(self, problem, b):
        return torch.ones_like(problem.real[b])


@dataclass(frozen=True)
class LastOfEquals(Good):
    """Of equal scores takes the last."""

    name = "last_of_equals"

    def pick(self, score):
        return len(score) - 1 - int(score.flip(0).argmax())


@dataclass(frozen=True)
class Nearest(Good):
    """The sign of the distance is wrong: adds the nearest token."""

    name = "nearest"

    def next(self, distance, chosen):
        return -distance[chosen].amin(0)


@dataclass(frozen=True)
class FirstToken(Good):
    """Starts from token 0 whatever it is."""

    name = "first_token"

    def first(self, problem, b):
        return -torch.arange(problem.shape[1]).double()


@dataclass(frozen=True)
class MutatesDistances(Good):
    """Fills the diagonal of the caller's matrix."""

    name = "mutates_distances"

    def distances(self, problem):
        problem.pairwise.diagonal(dim1=1, dim2=2).fill_(-1.0)
        return problem.pairwise


@dataclass(frozen=True)
class RandomStart(Good):
    """Starts from a token drawn from the global generator."""

    name = "random_start"

    def first(self, problem, b):
        return torch.rand(problem.shape[1])


@dataclass(frozen=True)
class BatchMean(Good):
    """Adds the mean distance of the whole batch to the score of a token."""

    name = "batch_mean"

    def first(self, problem, b):
        return (problem.pairwise * problem.real[:, None, :]).sum((0, 1))


@dataclass(frozen=True)
class HalfDistances(Good):
    """Computes in eighths."""

    name = "coarse_distances"

    def distances(self, problem):
        return (
            (problem.pairwise.float() * 4).round() / 4
            if problem.pairwise.dtype != torch.float64
            else problem.pairwise
        )


@dataclass(frozen=True)
class AbsoluteTolerance(Good):
    """Distances that differ by less than 1e-6 count as equal, whatever their size."""

    name = "absolute_tolerance"

    def next(self, distance, chosen):
        return (distance[chosen].amin(0) * 1e6).floor()


@dataclass(frozen=True)
class AnyKind(Good):
    """Solves every kind as if it were max-min."""

    name = "any_kind"

    def refuse(self, problem):
        pass

    def distances(self, problem):
        return torch.zeros(*problem.shape, problem.shape[1]) if problem.pairwise is None else problem.pairwise


@dataclass(frozen=True)
class OneTooFew(Good):
    """Counts from one."""

    name = "one_too_few"

    def choose(self, problem, b):
        return Good.choose(self, problem, b)[: max(1, int(problem.k[b]) - 1)]


@dataclass(frozen=True)
class NoSolver(Good):
    """Forgets to say who solved it, and how it ended."""

    name = "nameless"

    def result(self, **fields):
        return SubsetSolution(**{**fields, "solver": "", "ended": ()})


@dataclass(frozen=True)
class BoundIsValue(Good):
    """Claims its own value as the bound of the optimum."""

    name = "bound_is_value"

    def result(self, **fields):
        solution = SubsetSolution(**fields)
        return replace(solution, proved_bound=solution.value)


@dataclass(frozen=True)
class NotANumber(Good):
    """Normalises distances by their spread, which is zero for equal tokens."""

    name = "divides_by_spread"

    def choose(self, problem, b):
        distance = problem.pairwise[b]
        scaled = (distance - distance.min()) / (distance.max() - distance.min())
        if scaled.isnan().any():
            return list(range(int(problem.k[b]) - 1)) or [0]
        return Good.choose(self, problem, b)


@dataclass(frozen=True)
class ClaimsExact(Good):
    """A greedy rule tagged exact."""

    name = "claims_exact"
    tags = frozenset({"exact", "exact_budget"})


@dataclass(frozen=True)
class ClaimsNested(Good):
    """Tagged nested, but the start depends on k."""

    name = "claims_nested"
    tags = frozenset({"exact_budget", "nested"})

    def first(self, problem, b):
        return problem.unary[b] if int(problem.k[b]) % 2 else -problem.unary[b]


@dataclass(frozen=True)
class ClaimsHalf(Good):
    """Tagged with the theorem of farthest-point insertion, but maximises the mean distance."""

    name = "claims_half"

    def next(self, distance, chosen):
        return distance[chosen].sum(0)


@dataclass(frozen=True)
class ClaimsSubmodular(Good):
    """Tagged with the theorem of greedy facility location, but takes the token nearest to the first."""

    name: ClassVar[str] = "claims_submodular"
    kinds: ClassVar[frozenset[str]] = frozenset({"facility_location"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "submodular_greedy"})

    def first(self, problem, b):
        return -problem.pairwise[b].masked_fill(~problem.real[b], 0).sum(1)

    def next(self, distance, chosen):
        return distance[chosen[0]] - distance[chosen[0]].mean()


@dataclass(frozen=True)
class IgnoresTimeLimit(Good):
    """Tagged time_limit, but the limit ends in a status that claims failure and an empty choice."""

    name: ClassVar[str] = "ignores_time_limit"
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "time_limit"})
    time_limit: float = param(60.0, above=0)

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        solution = Good.solve(self, problem)
        if self.time_limit > 1:
            return solution
        return replace(
            solution, keep=torch.zeros_like(solution.keep), ended=(Status.FAILED,) * len(solution.keep)
        )
