"""A score as a unary cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, Score, Weighted, sum_param
from pruneopt.parts._sums import added
from pruneopt.signals import Signals


@dataclass(frozen=True)
class CostFromScore(CostTerm):
    """`-s_i` of a sum of scores, `[B,N]`, in the unit of the scores; what scores high is cheap to keep."""

    name: ClassVar[str] = "from_score"
    shape: ClassVar[str] = "unary"
    scores: tuple[Weighted, ...] = sum_param(Score, {"norm": "token_norm"}, doc="summands of the score")

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return -added(self.scores, signals, pairwise=False)
