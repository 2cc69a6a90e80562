"""Mass in proportion to the Euclidean norm of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Marginal, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class TokenNorm(Marginal):
    """`|x_i| / sum_j |x_j|`, `[B,N]` float32; uniform where all norms are zero.

    Source: TopV, `p = Norm(S)`; that Norm is the Euclidean norm of each token is an inference.
    """

    name: ClassVar[str] = "token_norm"
    source: ClassVar[str] = "TopV (CVPR 2025), Algorithm 1"
    signal: str = param("hidden_in", doc="signal whose norms are taken")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        norm = signals[self.signal].float().norm(dim=2).double() * signals.mask
        total = norm.sum(1, keepdim=True)
        flat = signals.mask.double() / signals.mask.sum(1, keepdim=True)
        return torch.where(total == 0, flat, norm / total.clamp_min(1e-300)).float()
