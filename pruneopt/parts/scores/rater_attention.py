"""Attention from the text tokens that concern the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class RaterAttention(Score):
    """Attention from rater text tokens, mean over heads and raters, `[B,N]` float32; higher is kept.

    Raters are the text tokens whose mean softmax weight over the input embeddings of all visual tokens of
    the unpruned prompt is above the mean (`strict`, the released code) or at least the mean (the paper).
    They depend on input embeddings only, hence are the same at every cut.

    `top_heads` above 0 averages only the heads with the most attention from raters to the picture, and
    `rope_base` above 0 divides attention by the product of rotated vectors of ones, a bias by distance
    (SparseVLM+, code branch 2.0; positions are places in the current sequence).
    """

    name: ClassVar[str] = "rater_attention"
    source: ClassVar[str] = "SparseVLM (ICML 2025), section 3"
    strict: bool = param(False, doc="raters above the mean, not at it")
    top_heads: int = param(0, low=0, doc="heads with the most mass that are averaged; 0 is all")
    rope_base: float = param(0.0, low=0, doc="base of the rotary embedding; 0 leaves attention alone")
    head_dim: int = param(128, low=2, doc="width of a head, for rope_base")

    @property
    def needs(self) -> frozenset[str]:
        names = {"attention_text", "text_embeddings", "text_mask", "start_embeddings", "start_mask"}
        return frozenset(names | ({"visual_index", "text_index"} if self.rope_base else set()))

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        raters, weight = self.raters(signals)
        rows = signals["attention_text"].float()
        share = raters.to(rows.dtype)
        if self.rope_base:
            bias = share[:, :, None] / self.rotary_weight(signals["text_index"], signals["visual_index"])
            per_head = torch.einsum("bhtn,btn->bhn", rows, bias)
        else:
            per_head = torch.einsum("bhtn,bt->bhn", rows, share)
        if self.top_heads:
            mass = (per_head * signals.mask[:, None, :]).sum(2)
            best = mass.argsort(dim=1, descending=True, stable=True)[:, : self.top_heads]
            per_head = per_head.gather(1, best[:, :, None].expand(-1, -1, per_head.shape[2]))
        score = per_head.mean(1) / raters.sum(1, keepdim=True).clamp_min(1)
        return score.masked_fill(weight.isnan().any(1, keepdim=True), torch.nan)  # no comparison sees a NaN

    def raters(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """Which text tokens are raters, `[B,T]` bool, and the weights that decide it, `[B,T]`."""
        visual, text = signals["start_embeddings"].float(), signals["text_embeddings"].float()
        real, there = signals["text_mask"], signals["start_mask"]
        logits = torch.bmm(visual, text.transpose(1, 2)).masked_fill(~real[:, None, :], -torch.inf)
        weight = logits.softmax(2) * there[:, :, None]
        weight = weight.sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        mean = weight.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        chosen = weight > mean if self.strict else weight >= mean
        return chosen & real, weight

    def rotary_weight(self, text: Tensor, visual: Tensor) -> Tensor:
        """`[B,T,N]` product of vectors of ones rotated to two places, over sqrt(d)."""
        steps = torch.arange(0, self.head_dim, 2, device=text.device, dtype=torch.float32)
        inverse = self.rope_base ** (-steps / self.head_dim)
        left, right = (place[:, :, None].float() * inverse for place in (text, visual))
        left, right = (torch.cat([angle.cos(), angle.sin()], 2) for angle in (left, right))
        return 2 * torch.bmm(left, right.transpose(1, 2)) / self.head_dim**0.5
