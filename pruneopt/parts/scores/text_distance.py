"""Mean distance of visual tokens from the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class TextDistance(Score):
    """`-(1/M) sum_j |x_i - t_j|^power`, `[B,N]` float32; higher (nearer to the text) is kept.

    `power=2` is the identity `-|x_i|^2 + 2 x_i . mean(t) - const`, with no pairwise matrix.  With projectors
    whose visual norms far exceed text norms it is in effect a filter for small norms.  Source:
    TrimTokenator stage 1; the square is from a third-party port, summaries say only "L2".
    """

    name: ClassVar[str] = "text_distance"
    source: ClassVar[str] = "TrimTokenator (arXiv 2509.00320), stage 1"
    power: int = param(2, choices=(1, 2), doc="exponent of the L2 distance")
    signal: str = param("features", doc="visual tokens")
    text: str = param("text_embeddings", doc="text tokens in the same space")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal, self.text, "text_mask"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        visual, text = signals[self.signal].float(), signals[self.text].float()
        real = signals["text_mask"]
        count = real.sum(1, keepdim=True).clamp_min(1)
        if self.power == 1:
            distance = torch.cdist(visual, text)
            return -(distance * real[:, None, :]).sum(2) / count
        mean = (text * real[:, :, None]).sum(1) / count
        constant = (text.square().sum(2) * real).sum(1, keepdim=True) / count
        return 2 * torch.einsum("bnd,bd->bn", visual, mean) - visual.norm(dim=2).square() - constant
