"""Redundancy of a token by how many near twins it has among the odd ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.parts.scores.every_kth import is_destination, stride_misfit
from pruneopt.parts.scores.match_similarity import metric_rows
from pruneopt.signals import Signals
from pruneopt.tensors import take_rows

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class TwinRedundancy(Score):
    """Minus the redundancy of a token among the odd ones, `[B,N]` float32; higher is kept.

    With `c` the number of other odd tokens whose cosine is at least `threshold` and `mu` their mean cosine,
    the redundancy is `c exp(gamma (mu - threshold))`, or the plain mean cosine where `c` is 0 (another scale,
    as released).  The odd tokens must stay, which the problem says: `protect.where: {kind: every_kth,
    stride: 2}`.  Source: SAINT section 3.
    """

    name: ClassVar[str] = "twin_redundancy"
    source: ClassVar[str] = "SAINT (arXiv 2503.11549), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    signal: str = param("keys", doc="metric; heads are averaged")
    threshold: float = param(0.83, low=-1, high=1, doc="cosine from which two tokens are twins")
    gamma: float = param(10.0, low=0, doc="weight of the mean excess")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def misfit(self, stage: StageSpec) -> str | None:
        return stride_misfit(2, stage)

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        cosine, odd = odd_cosines(signals[self.signal], signals.mask)
        twins = (cosine >= self.threshold) & odd
        count = twins.sum(2)
        mean = (cosine * odd).sum(2) / odd.sum(2).clamp_min(1)
        near = (cosine * twins).sum(2) / count.clamp_min(1)
        redundancy = torch.where(count > 0, count * (self.gamma * (near - self.threshold)).exp(), mean)
        return -redundancy


def odd_cosines(metric: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines `[B,N,M]` of all tokens with the odd ones, and which are of another, real token `[B,N,M]`."""
    rows = metric_rows(metric)
    odd = is_destination(mask, 2)
    order = (~odd).to(torch.int8).argsort(dim=1, stable=True)[:, : rows.shape[1] // 2]
    other = order[:, None, :] != torch.arange(rows.shape[1], device=rows.device)[:, None]
    return torch.bmm(rows, take_rows(rows, order).transpose(1, 2)), odd.gather(1, order)[:, None, :] & other
