"""Norm of a token's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import flat_heads


@dataclass(frozen=True)
class KeyNorm(Score):
    """Norm of the key after rotary embedding, `[B,N]` float32; higher is kept (`sign=-1`: lower is kept).

    `heads=joined` takes the norm over all heads side by side; `mean` averages the heads first.  Source: DART
    (L1, joined, picks pivots); ViTCoP (L2 of the mean, small norms matter, `sign=-1`).
    """

    name: ClassVar[str] = "key_norm"
    source: ClassVar[str] = "DART (EMNLP 2025), section 3; ViTCoP (AAAI 2026), stage III"
    signal: str = param("keys", doc="keys of the layer")
    p: float = param(2.0, low=1, doc="order of the norm")
    heads: str = param("joined", choices=("joined", "mean"), doc="heads side by side or averaged first")
    sign: int = param(1, choices=(1, -1), doc="-1 keeps small norms")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        keys = signals[self.signal].float()
        rows = flat_heads(keys) if self.heads == "joined" else keys.mean(1)
        return rows.norm(p=self.p, dim=2) * self.sign
