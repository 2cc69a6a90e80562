"""The largest scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._terms import best_k, modular, modular_gains, unary_or

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class TopK(Kind):
    """Sum of `unary` over the choice."""

    name: ClassVar[str] = "top_k"
    needs: ClassVar[frozenset[str]] = frozenset({"unary"})
    greedy = {"kind": "stable_top_k"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return modular(problem, keep)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The optimum itself: the k largest scores."""
        score = unary_or(problem, 0.0).masked_fill(~problem.real, -math.inf)
        return best_k(score, problem.k, forced=problem.protected)

    def bounds(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The optima themselves."""
        return CappedSimplex.of(problem).most_of_each(unary_or(problem, 0.0))

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        return unary_or(problem, 0.0).gather(1, order.clamp_min(0)).masked_fill(order < 0, math.nan)

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return modular_gains(problem)

    def linear(self, problem: SubsetProblem) -> Program:
        program = choosing(problem)
        program.c = placed(unary_or(problem, 0.0), program.place)
        program.centre(slice(None), int(problem.k[0]))
        return program
