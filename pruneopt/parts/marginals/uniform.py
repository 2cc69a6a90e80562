"""The same mass for every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Marginal
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Uniform(Marginal):
    """`1/n` at the n real tokens of every problem, `[B,N]` float32."""

    name: ClassVar[str] = "uniform"

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        mask = signals.mask.double()
        return (mask / mask.sum(1, keepdim=True)).float()
