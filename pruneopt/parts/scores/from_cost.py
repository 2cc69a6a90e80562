"""A unary cost as a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import CostTerm, Score, Weighted, sum_param
from pruneopt.parts._sums import added
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ScoreFromCost(Score):
    """`-c_i` of a sum of unary cost terms, `[B,N]`, in cost units; higher (cheaper) is kept.

    A pairwise cost ranks nothing by itself: the score `transport` says what it costs a token to serve others.
    """

    name: ClassVar[str] = "from_cost"
    cost: tuple[Weighted, ...] = sum_param(CostTerm, {"centre": "central_distance"}, doc="unary cost terms")

    def __post_init__(self) -> None:
        super().__post_init__()
        for term in self.cost:
            if getattr(term.part, "shape", "") != "unary":
                raise SpecError(
                    f"from_cost.cost.{term.label}: {term.part.name} is no unary cost, and ranks no token by "
                    "itself; write the score transport, {kind: transport, cost: {...}, readout: ...}"
                )

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return -added(self.cost, signals, pairwise=False)
