"""Likeness of visual tokens to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import range_per_sample, unit_rows


@dataclass(frozen=True)
class TextCosine(Score):
    """Cosine of every visual token to the text, `[B,N]` float32; higher is kept.

    `query`: `last` text token (GreedyPrune), cosine to the `mean` of the text rows (ZSPAPrune), or the
    average of the cosines to all rows (`each`, CDPruner).  `text` may be any `[B,T,*]` signal in the space
    of `signal`; rows that `text_mask` calls padding are left out, `clip_text` has none.

    `sign=-1` negates first: CDPruner's code does, because CLIP's patches anti-correlate with the text.
    `quality=true` scales to `(s - min + 1e-6) / (max - min)` over all crops of a sample, the positive
    quality that CDPruner puts on a determinantal process; a constant cosine gives ones.
    """

    name: ClassVar[str] = "text_cosine"
    source: ClassVar[str] = "ZSPAPrune (arXiv 2510.17197); GreedyPrune (arXiv 2506.13166)"
    query: str = param("mean", choices=("last", "mean", "each"), doc="how the text becomes one score")
    signal: str = param("features", doc="visual tokens")
    text: str = param("text_features", doc="text tokens in the same space")
    sign: int = param(1, choices=(1, -1), doc="-1 keeps tokens unlike the text")
    quality: bool = param(False, doc="scale to (0,1] over the crops of a sample")

    @property
    def needs(self) -> frozenset[str]:
        masked = set() if self.text.startswith("clip_") else {"text_mask"}
        return frozenset({self.signal, self.text} | masked)

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        text = signals[self.text].float()
        real = signals["text_mask"] if "text_mask" in self.needs else torch.ones_like(text[:, :, 0]).bool()
        weight = real.float() / real.sum(1, keepdim=True).clamp_min(1)
        if self.query == "last":
            place = torch.arange(real.shape[1], device=real.device)
            last = torch.where(real, place, -1).amax(1).clamp_min(0)
            row = text[torch.arange(len(text), device=text.device), last]
        elif self.query == "mean":
            row = (text * weight[:, :, None]).sum(1)
        if self.query == "each":
            row = (unit_rows(text) * weight[:, :, None]).sum(1)
        else:
            row = unit_rows(row)
        cosine = self.sign * torch.einsum("bnd,bd->bn", unit_rows(signals[self.signal].float()), row)
        if not self.quality:
            return cosine
        low, high = range_per_sample(cosine, signals.mask, sample=signals.sample)
        span = (high - low)[:, None]
        return torch.where(span > 0, (cosine - low[:, None] + 1e-6) / torch.where(span > 0, span, 1), 1.0)
