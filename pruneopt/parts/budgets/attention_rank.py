"""Keep as many tokens as text attention has rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.parts.scores.rater_attention import RaterAttention
from pruneopt.signals import Signals


@dataclass(frozen=True)
class AttentionRank(BudgetRule):
    """Keep `int(scale * rank(P) + bias)` tokens, at most all but one; the plain budget is ignored.

    `P` is the head-mean attention from the raters to the visual tokens.  Source: SparseVLM code, first
    release ((scale, bias) of (13.5, 0), (9, 6) and (0.8, 0) for its settings of 192, 128 and 64 tokens);
    the paper prunes `lambda (N - rank(P))` tokens and does not give lambda.
    """

    name: ClassVar[str] = "attention_rank"
    source: ClassVar[str] = "SparseVLM (ICML 2025), rank rule"
    scale: float = param(13.5, low=0, doc="tokens per unit of rank")
    bias: float = param(0.0, doc="tokens on top")
    strict: bool = param(True, doc="raters above the mean, not at it")

    @property
    def needs(self) -> frozenset[str]:
        return RaterAttention().needs

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        raters, _ = RaterAttention(strict=self.strict).raters(signals)
        rows = signals["attention_text"].float().mean(1) * raters[:, :, None] * signals.mask[:, None, :]
        rank = torch.linalg.matrix_rank(rows)
        tokens = signals.mask.sum(1)
        return (rank * self.scale + self.bias).long().minimum(tokens - 1).clamp_min(1)
