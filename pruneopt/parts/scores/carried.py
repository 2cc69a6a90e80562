"""The importance of an earlier cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Carried(Score):
    """What the previous cut of the same method gave to the tokens it kept, `[B,N]`; higher is kept.

    Lets a static map decide several nested cuts, as in VFlowOpt, where later cuts read nothing new.
    """

    name: ClassVar[str] = "carried"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), section 3.3"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"importance"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return signals["importance"].float()
