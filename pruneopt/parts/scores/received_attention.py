"""Attention that patches receive inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ReceivedAttention(Score):
    """Attention a patch gets from all encoder queries, mean over heads and queries, `[B,N]`; higher is kept.

    The stand-in for CLS attention on towers without CLS, as the authors of FasterVLM, VisPruner and
    VisionZip advise.
    """

    name: ClassVar[str] = "received_attention"
    source: ClassVar[str] = "VisionZip (CVPR 2025), encoders without CLS"
    layer: int | None = param(None, doc="encoder layer; None is the layer the features are read from")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"received_attention" if self.layer is None else f"received_attention@{self.layer}"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        (name,) = self.needs
        return signals[name].float().mean(1)
