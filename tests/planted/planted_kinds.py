"""Kinds of problem with one planted bug each, after a right one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.kinds import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._swaps import Recomputed, Swaps
from pruneopt.problems.kinds._terms import best_k, unary_or
from pruneopt.problems.subset import SubsetProblem, Terms


class Good(Kind):
    """Sum of the scores of the choice."""

    name: ClassVar[str] = "planted"
    needs: ClassVar[frozenset[str]] = frozenset({"unary"})
    scaled: ClassVar[frozenset[str]] = frozenset({"unary"})

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return (unary_or(problem, 0.0) * keep).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return best_k(unary_or(problem, 0.0), problem.k)

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        score = unary_or(problem, 0.0)
        return score[:, None, :] - score[:, :, None]

    def linear(self, problem: SubsetProblem) -> Program:
        program = choosing(problem)
        program.c = placed(unary_or(problem, 0.0), program.place)
        return program


class UnknownUnit(Good):
    """Losses in a unit that nobody prints."""

    unit = "grams"


class DrawForgets(Good):
    """Random numbers that `build` accepts."""

    pairs = "costs"

    def draw(self, unit: Tensor, quality: Tensor, *, k: int) -> Terms:
        terms = super().draw(unit, quality, k=k)
        return {**terms, "pairwise": torch.rand_like(terms["pairwise"])}


class BatchMean(Good):
    """Worth depends on who else is in the batch."""

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return super().value(problem, keep) / unary_or(problem, 0.0).mean()


class ReadsPadding(Good):
    """The largest score of all counts, padding too."""

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        assert problem.unary is not None
        return super().value(problem, keep) + problem.unary.double().amax(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return "not asked"


class FirstIsBest(Good):
    """Lower indices are worth more."""

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        place = torch.arange(keep.shape[1], dtype=torch.float64)
        return (unary_or(problem, 0.0) * keep * (1 + place)).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return "not asked"

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        worth = unary_or(problem, 0.0) * (1 + torch.arange(keep.shape[1], dtype=torch.float64))
        return worth[:, None, :] - worth[:, :, None]

    def linear(self, problem: SubsetProblem) -> Program:
        program = super().linear(problem)
        program.c = program.c * (1 + program.place)
        return program


class BoundAroundChoice(Good):
    """What was chosen is taken for the best there is."""

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return self.value(problem, keep)


class NoReason(Good):
    """No bound, and no word why."""

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return ""


class GainsBackwards(Good):
    """Gains of the swap the other way round."""

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return super().swap_gains(problem, keep).transpose(1, 2)


class MaximisesLosses(Good):
    """The program looks for the least."""

    def linear(self, problem: SubsetProblem) -> Program:
        program = super().linear(problem)
        program.c = -program.c
        return program


class ForgetsProtected(Good):
    """The program may drop what is protected."""

    def linear(self, problem: SubsetProblem) -> Program:
        program = super().linear(problem)
        program.floor = np.zeros_like(program.floor)
        return program


class Offset(Good):
    """A constant that does not scale."""

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return super().value(problem, keep) + 1.0

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return best_k(unary_or(problem, 0.0), problem.k) + 1.0


class SmallMagnitude(Good):
    """A unit of tolerances that has nothing to do with the objective."""

    def magnitude(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return torch.full((keep.shape[0],), 1e-3, dtype=torch.float64)


class SortsInPlace(Good):
    """The scores are sorted where they stand."""

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        assert problem.unary is not None
        bound = super().bound(problem, keep)
        problem.unary.copy_(problem.unary.sort(dim=1).values)
        return bound


class StaleGains(Good):
    """Gains stay those of the choice that the search began with."""

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Stale(problem, keep)


class _Stale(Recomputed):
    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        self.first = super().gains()

    def gains(self) -> Tensor:
        return self.first


class Priced(Good):
    """Scores are gains, and no bound of every count is its own: right."""

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        score = unary_or(problem, 0.0).gather(1, order.clamp_min(0))
        return score.masked_fill(order < 0, torch.nan)


class DoubledGains(Priced):
    """Everything adds twice what it is worth."""

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        return 2 * super().gains(problem, order)


class RisingGains(Priced):
    """The square of what the scores sum to: every token adds more than the one before it."""

    scaled: ClassVar[frozenset[str]] = frozenset()

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return super().value(problem, keep).square()

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return best_k(unary_or(problem, 0.0), problem.k).square()

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        one = (unary_or(problem, 0.0) * keep).sum(1)[:, None, None]
        return (one + super().swap_gains(problem, keep)).square() - one.square()

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        worth = super().gains(problem, order).cumsum(1).square()
        return worth.diff(dim=1, prepend=torch.zeros_like(worth[:, :1]))


class OneCount(Priced):
    """The bound of the count that is asked for stands for all counts."""

    def bounds(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        return best_k(unary_or(problem, 0.0), problem.k)[:, None].expand(problem.shape)


# Which checks each of them fails, and no other.
KILLS: dict[type[Good], list[str]] = {
    Good: [],
    UnknownUnit: ["check_declared"],
    DrawForgets: ["check_draw"],
    BatchMean: ["check_bound", "check_model", "check_scaled", "check_swap_gains", "check_values"],
    ReadsPadding: ["check_model", "check_padding"],
    FirstIsBest: ["check_token_order"],
    BoundAroundChoice: ["check_bound"],
    NoReason: ["check_bound"],
    GainsBackwards: ["check_swap_gains"],
    StaleGains: ["check_swaps"],
    Priced: [],
    DoubledGains: ["check_gains"],
    RisingGains: ["check_gains", "check_model"],
    OneCount: ["check_bounds"],
    MaximisesLosses: ["check_model"],
    ForgetsProtected: ["check_model"],
    Offset: ["check_model", "check_scaled"],
    SmallMagnitude: ["check_model", "check_scaled"],
    SortsInPlace: ["check_bound", "check_model", "check_padding", "check_problem_pure", "check_token_order"],
}
