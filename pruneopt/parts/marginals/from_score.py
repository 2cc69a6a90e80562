"""A score as mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Marginal, Score, Weighted, param, sum_param
from pruneopt.parts._sums import added
from pruneopt.signals import Signals
from pruneopt.tensors import normalize


@dataclass(frozen=True)
class MarginalFromScore(Marginal):
    """Mass that grows with a sum of scores, `[B,N]` float32, summing to one over real tokens.

    `share`: `s_i / sum_j s_j`, for scores of at least zero; a problem with a negative one becomes NaN, which
    the transport problem refuses; all zero means uniform.  `softmax`: `exp(s_i / temperature)` over its sum,
    for any score.
    """

    name: ClassVar[str] = "from_score"
    scores: tuple[Weighted, ...] = sum_param(Score, {"norm": "token_norm"}, doc="summands of the score")
    how: str = param("share", choices=("share", "softmax"), doc="how a score becomes mass")
    temperature: float = param(1.0, above=0, doc="of the softmax, in score units")

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        score, real = added(self.scores, signals, pairwise=False).double(), signals.mask
        if self.how == "softmax":
            return normalize(score / self.temperature, "softmax", mask=real).float()
        score = score.masked_fill(~real, 0)
        flat = real.double() / real.sum(1, keepdim=True)
        total = score.sum(1, keepdim=True)
        share = torch.where(total == 0, flat, score / total)
        return share.masked_fill((score < 0).any(1, keepdim=True) & real, torch.nan).float()
