"""How unlike the mean token a token is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import unit_rows


@dataclass(frozen=True)
class MeanUnlikeness(Score):
    """Minus the cosine of a token to the mean of all tokens, `[B,N]` float32 in [-1,1]; higher is kept.

    Source: GlobalCom2, the score of towers without CLS (the paper only; no released code has it).
    """

    name: ClassVar[str] = "mean_unlikeness"
    source: ClassVar[str] = "GlobalCom2 (AAAI 2026), encoders without CLS"
    tags: ClassVar[frozenset[str]] = frozenset({"scale_free"})
    signal: str = param("encoder_features", doc="tokens whose mean is taken")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        rows = signals[self.signal].float()
        mean = rows.masked_fill(~signals.mask[:, :, None], 0).sum(1) / signals.mask.sum(1, keepdim=True)
        return -torch.einsum("bnd,bd->bn", unit_rows(rows), unit_rows(mean))
