"""Redundancy of every second token by how many near twins it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.scores.bipartite_similarity import is_destination, metric_rows
from pruneopt.signals import Signals


@dataclass(frozen=True)
class NeighbourRedundancy(Score):
    """Minus the redundancy of even tokens among odd ones, `[B,N]` float32; higher is kept.

    With `c` the number of odd tokens whose cosine is at least `threshold` and `mu` their mean cosine, the
    redundancy is `c exp(gamma (mu - threshold))`, or the plain mean cosine where `c` is 0 (another scale, as
    released).  Odd tokens rank above all, so at most half of the tokens can go.  Source: SAINT section 3.
    """

    name: ClassVar[str] = "neighbour_redundancy"
    source: ClassVar[str] = "SAINT (arXiv 2503.11549), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    signal: str = param("keys", doc="metric; heads are averaged")
    threshold: float = param(0.83, low=-1, high=1, doc="cosine from which two tokens are twins")
    gamma: float = param(10.0, low=0, doc="weight of the mean excess")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Tensor:
        cosine, odd = odd_cosines(signals[self.signal], signals.mask)
        twins = (cosine >= self.threshold) & odd
        count = twins.sum(2)
        mean = (cosine * odd).sum(2) / odd.sum(2).clamp_min(1)
        near = (cosine * twins).sum(2) / count.clamp_min(1)
        redundancy = torch.where(count > 0, count * (self.gamma * (near - self.threshold)).exp(), mean)
        return torch.where(is_destination(signals.mask, 2), 2.0, -redundancy)


def odd_cosines(metric: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines `[B,N,M]` of all tokens with the odd ones, and which of those M columns exist `[B,1,M]`."""
    rows = metric_rows(metric)
    odd = is_destination(mask, 2)
    order = (~odd).to(torch.int8).argsort(dim=1, stable=True)[:, : rows.shape[1] // 2]
    picked = rows.gather(1, order[:, :, None].expand(-1, -1, rows.shape[2]))
    return torch.bmm(rows, picked.transpose(1, 2)), odd.gather(1, order)[:, None, :]
