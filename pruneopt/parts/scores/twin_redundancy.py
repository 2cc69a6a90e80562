"""Redundancy of a token by how many near twins it has among the odd ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.parts._ledger import once
from pruneopt.parts.scores.every_kth import is_destination, stride_misfit
from pruneopt.parts.scores.match_similarity import destinations, metric_rows
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
        cosine, odd = odd_cosines(signals, self.signal)
        twins, count = twins_of(signals, self.signal, threshold=self.threshold)
        mean = cosine.where(odd, 0).sum(2) / odd.sum(2).clamp_min(1)
        near = cosine.where(twins, 0).sum(2) / count.clamp_min(1)
        redundancy = torch.where(count > 0, count * (self.gamma * (near - self.threshold)).exp(), mean)
        return -redundancy


def odd_cosines(signals: Signals, name: str) -> tuple[Tensor, Tensor]:
    """Cosines `[B,N,M]` of all tokens with the odd ones, and which are of another, real token `[B,N,M]`."""
    metric, mask = signals[name], signals.mask

    def make() -> tuple[Tensor, Tensor]:
        rows, odd = metric_rows(metric), is_destination(mask, 2)
        order = destinations(odd, stride=2)
        other = order[:, None, :] != torch.arange(rows.shape[1], device=rows.device)[:, None]
        cosine = torch.bmm(rows, take_rows(rows, order).transpose(1, 2))
        return cosine, odd.gather(1, order)[:, None, :] & other

    return once(make, odd_cosines, of=(metric, mask))


def twins_of(signals: Signals, name: str, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Which other odd tokens have a cosine of `threshold` or more, `[B,N,M]`, and how many, `[B,N]`."""

    def make() -> tuple[Tensor, Tensor]:
        cosine, odd = odd_cosines(signals, name)
        twins = (cosine >= threshold) & odd
        return twins, twins.sum(2)

    return once(make, twins_of, threshold, of=(signals[name], signals.mask))
