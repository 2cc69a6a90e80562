"""Counts of a rule that gives every pivot the same quota."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class PivotQuota(BudgetRule):
    """`pivots + (pivots + text_pivots) * floor(k / (pivots + text_pivots))` tokens, at most all of them.

    Source: DART as released, which keeps 132 tokens for a budget of 128 and 4 for one of 3.
    """

    name: ClassVar[str] = "pivot_quota"
    source: ClassVar[str] = "DART (EMNLP 2025), as released"
    pivots: int = param(4, low=1, doc="visual pivots")
    text_pivots: int = param(4, low=0, doc="text pivots")

    def misfit(self, stage: StageSpec) -> str | None:
        for name in ("pivots", "text_pivots"):
            ours, theirs = getattr(self, name), getattr(stage.solver, name, None)
            if theirs is not None and theirs != ours:
                return (
                    f"budget.rule.{name} is {ours} and solver.{name} is {theirs}; quotas are counted for the "
                    "pivots that are visited, so set both"
                )
        return None

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        total = self.pivots + self.text_pivots
        return (self.pivots + total * (k // total)).minimum(signals.mask.sum(1))
