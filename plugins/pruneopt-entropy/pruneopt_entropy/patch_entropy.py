"""How much a patch varies, as a cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import CostTerm, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class PatchEntropy(CostTerm):
    """`1 - H_i / log2(bins)`, `[B,N]` in [0,1]; lower (a busier patch) is cheaper to keep.

    `H_i` is the entropy in bits of the histogram of the grey values of patch i, binned between the smallest
    and the largest grey value of its picture, so that the preprocessing of the encoder does not matter.
    A picture of one grey value has entropy 0 everywhere.
    """

    name: ClassVar[str] = "patch_entropy"
    source: ClassVar[str] = "Shannon 1948; used as an importance cue by VFlowOpt (ICCV 2025)"
    shape: ClassVar[str] = "unary"
    bins: int = param(32, low=2, high=256, doc="bins of the histogram")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"patches"})

    def __call__(self, signals: Signals) -> Tensor:
        grey = signals["patches"].float().mean(2).flatten(2)
        real = signals.mask[:, :, None]
        low = grey.masked_fill(~real, torch.inf).amin((1, 2), keepdim=True)
        high = grey.masked_fill(~real, -torch.inf).amax((1, 2), keepdim=True)
        span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        place = ((grey - low) / span * self.bins).long().clamp(0, self.bins - 1)
        counts = torch.zeros(*grey.shape[:2], self.bins, device=grey.device)
        counts.scatter_add_(2, place, torch.ones_like(grey))
        share = counts / grey.shape[2]
        entropy = -torch.special.xlogy(share, share).sum(2) / torch.log(torch.tensor(2.0))
        cost = 1 - entropy / torch.log2(torch.tensor(float(self.bins)))
        return cost.masked_fill(grey.isnan().any(2), torch.nan)  # a histogram would hide it
