"""Never keep everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Capped(BudgetRule):
    """The plain budget, but at least `spare` tokens are dropped (one token always stays).

    Source: SparseVLM as released, which keeps at most all tokens but one.
    """

    name: ClassVar[str] = "capped"
    source: ClassVar[str] = "SparseVLM (ICML 2025), as released"
    spare: int = param(1, low=0, doc="tokens that are always dropped")

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        return k.minimum(signals.mask.sum(1) - self.spare).clamp_min(1)
