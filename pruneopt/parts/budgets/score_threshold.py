"""Keep every token above a fixed score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import BudgetRule, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ScoreThreshold(BudgetRule):
    """As many tokens as have a score above `bound`, at least one: counts `[B]`, the plain budget ignored.

    Source: "Beyond Intermediate States", threshold mode (`bound` is minus its cosine threshold).
    """

    name: ClassVar[str] = "score_threshold"
    source: ClassVar[str] = "Beyond Intermediate States (arXiv 2503.20540), as released"
    bound: float = param(doc="score above which a token stays")

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        if importance is None:
            raise SpecError("budget.rule score_threshold needs scores; give the problem scores")
        return ((importance > self.bound) & signals.mask).sum(1).clamp_min(1)
