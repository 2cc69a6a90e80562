"""Squared Euclidean distance between source and target features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, param
from pruneopt.problems.pooled import without_rounding
from pruneopt.problems.row_sums import Mapped, Total
from pruneopt.problems.rows import Beside, Gram, Rows
from pruneopt.signals import Signals


@dataclass(frozen=True)
class FeatureSquaredL2(CostTerm):
    """`C_f(i,j) = |s_i - t_j|^2`, `[B,N,N]` float32, in squared feature units; lower is cheaper.

    Source: TopV, section 3, as read in secondary texts (docs/methods/topv.md).  The paper's source is the
    stream entering the layer and its target the output of the layer's second norm; scaling is not stated, so
    the specs min-max it per problem through `normalize`.  Both clouds are centred on the mean source before
    the Gram identity, which otherwise cancels badly for near-equal tokens; rounding below zero is removed.
    """

    name: ClassVar[str] = "feature_sq_l2"
    source: ClassVar[str] = "TopV (CVPR 2025), relative feature factor"
    source_signal: str = param("hidden_in", doc="signal of the source tokens")
    target_signal: str = param("post_attention_norm", doc="signal of the target tokens")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.source_signal, self.target_signal})

    @property
    def symmetric(self) -> bool:
        return self.source_signal == self.target_signal

    @property
    def negative_type(self) -> bool:
        return self.symmetric

    def __call__(self, signals: Signals) -> Float[Tensor, "B N M"]:
        source, target = self._centred(signals)
        lengths = [torch.einsum("bnd,bnd->bn", x, x) for x in (source, target)]
        squares = lengths[0][:, :, None] + lengths[1][:, None, :]
        return torch.baddbmm(squares, source, target.transpose(1, 2), alpha=-2).clamp_min_(0)

    def by_rows(self, signals: Signals) -> Rows:
        source, target = self._centred(signals)
        clouds = (source,) if self.symmetric else (source, target)
        lengths = Beside(*(torch.einsum("bnd,bnd->bn", x, x) for x in clouds))
        squares = Total((lengths, Gram(*clouds)), (1.0, -2.0))
        return Mapped(squares, without_rounding, is_negative_type=self.negative_type)

    def _centred(self, signals: Signals) -> tuple[Tensor, Tensor]:
        source, target = signals[self.source_signal].float(), signals[self.target_signal].float()
        real = signals.mask[:, :, None]
        if signals.ragged:  # whole batches skip these passes over [B,N,D]
            source, target = source.masked_fill(~real, 0), target.masked_fill(~real, 0)
        centre = source.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        source, target = source - centre, target - centre
        if signals.ragged:
            source, target = source * real, target * real
        return source, target
