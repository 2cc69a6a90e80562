"""Importance by a random walk along attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class PageRank(Score):
    """Root mean square over heads of a walk along `softmax(logits / tau)`, `[B,N]`; higher is kept.

    Each head starts from equal mass on the whole sequence and moves it along the rows of its attention map;
    `damping` `d` mixes in equal mass, `d / L + (1 - d) x M`.  With a causal map and no damping mass drains
    towards the first tokens, so late tokens are disfavoured by construction.  `L` counts real tokens: a place
    whose own logit is masked is padding, which neither sends nor holds mass.  Source: AIM section 3.3; its
    code has the damping but sets it to 0.
    """

    name: ClassVar[str] = "pagerank"
    source: ClassVar[str] = "AIM (ICCV 2025), section 3.3"
    tau: float = param(0.1, above=0, doc="temperature of the map")
    rounds: int = param(5, low=1, doc="steps of the walk")
    damping: float = param(0.0, low=0, high=1, doc="share of mass spread evenly in each step")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_logits", "visual_index"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        logits = signals["attention_logits"]
        masked = torch.finfo(logits.dtype).min / 2
        real = ~(logits.diagonal(dim1=2, dim2=3)[:, :1, None] <= masked)  # [B,1,1,L]; NaN is for the caller
        scaled = (logits.float() / self.tau).clamp_min(torch.finfo(torch.float32).min)
        step = scaled.softmax(3)  # of padding too, which would have none if all of its row were -inf
        even = real / real.sum(3, keepdim=True).clamp_min(1)
        mass = even.expand(-1, step.shape[1], -1, -1)
        for _ in range(self.rounds):
            mass = self.damping * even + (1 - self.damping) * (mass.masked_fill(~real, 0) @ step)
        importance = mass.squeeze(2).square().mean(1).sqrt()
        return importance.gather(1, signals["visual_index"].clamp_min(0))
