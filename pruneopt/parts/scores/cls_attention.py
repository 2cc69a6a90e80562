"""Attention of the encoder's CLS token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class CLSAttention(Score):
    """CLS-to-patch attention of one encoder layer, `[B,N]` float32; higher is kept.

    Probabilities after the softmax; the share CLS gives itself is cut off and nothing is renormalised.
    Source: FasterVLM (mean over heads, the layer the features are read from); VisionZip sums the heads,
    which ranks alike.  Towers without CLS do not provide the signal: use `received_attention`.
    """

    name: ClassVar[str] = "cls_attention"
    source: ClassVar[str] = "FasterVLM (arXiv 2412.01818v1), section 3"
    layer: int | None = param(None, doc="encoder layer; None is the layer the features are read from")
    heads: str = param("mean", choices=("mean", "sum", "max"), doc="reduction over heads")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"cls_attention" if self.layer is None else f"cls_attention@{self.layer}"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        (name,) = self.needs
        rows = signals[name].float()
        if self.heads == "max":
            return rows.amax(1)
        return rows.mean(1) if self.heads == "mean" else rows.sum(1)
