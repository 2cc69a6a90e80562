"""Attention from the patches that everybody looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ContextRelevance(Score):
    """Mean attention from global patches, `[B,N]` float32; higher is kept.

    A patch is global when it receives more than `threshold` times the mean attention of all patches of an
    encoder layer (heads averaged).  Where the threshold leaves no patch, all count.  Source: VFlowOpt
    section 3.2; the paper sums over global patches, the code averages, which ranks alike unless another
    score is added; the code returns NaN for an empty set.
    """

    name: ClassVar[str] = "context_relevance"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), equation 4"
    threshold: float = param(1.0, low=0, doc="times the mean received attention")
    layer: int | None = param(None, doc="encoder layer; None is the layer the features are read from")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"encoder_attention" if self.layer is None else f"encoder_attention@{self.layer}"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        (name,) = self.needs
        real = signals.mask
        attention = signals[name].float().mean(1) * real[:, :, None]
        count = real.sum(1, keepdim=True).clamp_min(1)
        received = attention.sum(1) / count
        mean = (received * real).sum(1, keepdim=True) / count
        chosen = (received > self.threshold * mean) & real
        chosen = chosen | (~chosen.any(1, keepdim=True) & real)
        return (attention * chosen[:, :, None]).sum(1) / chosen.sum(1, keepdim=True)
