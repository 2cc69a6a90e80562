"""Every subset, one by one: the witness of the witnesses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers._exact import Answer, solve_samples
from pruneopt.parts.solvers._walk import check_kind
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem

LARGEST = 16


@dataclass(frozen=True)
class BruteForce(SubsetSolver):
    """Evaluate all subsets of the allowed size and keep the best, the lexicographically first of equals.

    Where `k` is a maximum, all smaller sizes from 1 are tried too.  Raises ProblemError above 16 real tokens.
    """

    name: ClassVar[str] = "brute_force"
    kinds = KindsOffering()
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "exact_budget", "host", "small"})

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        most = problem.real.sum(1)
        if int(most.max()) > LARGEST:
            sample = int(most.argmax())
            raise ProblemError(
                f"brute_force tries every subset and stops at {LARGEST} tokens; sample {sample} has "
                f"{int(most[sample])}. Use milp or branch_and_bound"
            )
        return solve_samples(self, problem, one=self._one)

    def _one(self, problem: SubsetProblem) -> Answer:
        k = int(problem.k[0])
        place = problem.real[0].nonzero().squeeze(1).tolist()
        sizes = range(1, k + 1) if problem.rules.at_most else (k,)
        sets = [c for size in sizes for c in combinations(place, size)]
        keep = torch.zeros(len(sets), problem.shape[1], dtype=torch.bool, device=problem.k.device)
        index = torch.tensor([(row, i) for row, c in enumerate(sets) for i in c], device=keep.device)
        keep[index[:, 0], index[:, 1]] = True
        value = torch.cat([problem.repeated(len(part)).value(part) for part in keep.split(512)])
        best = int(value.argmax())
        if value[best] == -math.inf and problem.rules.at_most:
            return Answer([], -math.inf, Status.INFEASIBLE)
        return Answer(list(sets[best]), float(value[best]), Status.OPTIMAL)
