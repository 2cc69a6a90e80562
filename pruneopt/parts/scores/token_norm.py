"""The norm of a token: the control for transport methods, and TopV as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class TokenNormScore(Score):
    """`|x_i|`, `[B,N]` float32; higher is kept.

    A control: a row-sum readout of a plan whose source side was updated last ranks tokens exactly like this
    (docs/methods/topv.md has the proof).
    """

    name: ClassVar[str] = "token_norm"
    signal: str = param("features", doc="signal whose norms are taken")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return signals[self.signal].float().norm(dim=2)
