"""Entropy of the pixels behind a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class PatchEntropy(Score):
    """Entropy in bits of the grey-level histogram of each patch, `[B,N]` float32; higher is kept.

    Pixels are brought back to [0,1] by `x * std + mean`, scaled to 0..255 and truncated; the three channels
    are weighted 0.3333 each and the result rounded into 256 bins.  Source: VFlowOpt section 3.2.  Its code
    skips the way back to [0,1], so that negative pixels wrap in a cast to unsigned bytes; pixels outside
    [0,1] are clamped to it here.
    """

    name: ClassVar[str] = "patch_entropy"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), section 3.2"
    mean: float = param(0.5, doc="mean that the image processor removed")
    std: float = param(0.5, above=0, doc="deviation that the image processor divided by")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"patches"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        pixels = (signals["patches"].float() * self.std + self.mean).clamp(0, 1)
        broken = pixels.isnan().flatten(2).any(2)
        pixels = pixels.nan_to_num(0)
        grey = ((pixels * 255).trunc() * 0.3333).sum(2).round().clamp(0, 255).long().flatten(2)
        counts = torch.zeros(*grey.shape[:2], 256, device=grey.device)
        counts.scatter_add_(2, grey, torch.ones_like(grey, dtype=counts.dtype))
        share = counts / grey.shape[2]
        entropy = -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log2()).sum(2)
        return entropy.masked_fill(broken, torch.nan)
