"""Bipartite matching of every s-th token with the rest: who can be merged away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import places, take_rows, unit_rows


@dataclass(frozen=True)
class BipartiteSimilarity(Score):
    """Minus the best cosine of a source token to any destination, `[B,N]` float32; higher is kept.

    Destinations are every `stride`-th token (the last of each block) and rank above all sources, so the
    kept ones are all destinations and the least matched sources: at most `(stride - 1) / stride` of the
    tokens can go.  A kernel-free half of ToMe; `merge_matched` merges what was dropped.  Source: ToMe
    section 3 (`stride=2` on head-mean keys); AIM merges with the same rule.
    """

    name: ClassVar[str] = "bipartite_similarity"
    source: ClassVar[str] = "ToMe (ICLR 2023), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    signal: str = param("features", doc="metric; heads are averaged")
    stride: int = param(2, low=2, doc="one destination per this many tokens")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Tensor:
        rows = metric_rows(signals[self.signal])
        best, _ = best_destination(rows, signals.mask, self.stride)
        return torch.where(is_destination(signals.mask, self.stride), 2.0, -best)


def metric_rows(metric: Tensor) -> Tensor:
    """Unit rows `[B,N,*]` of a metric, heads averaged where there are any."""
    return unit_rows(metric.float().mean(1) if metric.dim() == 4 else metric)


def is_destination(mask: Tensor, stride: int) -> Tensor:
    """`[B,N]` bool: the last token of each block of `stride`, padding excluded."""
    return (places(mask) % stride == stride - 1) & mask


def best_destination(rows: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Largest cosine of each source to a destination and the index of that, `[B,N]` each, lower index first.

    Entries of destinations are meaningless.  Without any destination the cosine is -1.
    """
    where = is_destination(mask, stride)
    tokens = rows.shape[1]
    count = tokens // stride
    # padding stands between destinations and sources: a short sample has fewer of the former than `count`
    order = torch.where(where, 0, torch.where(mask, 2, 1)).argsort(dim=1, stable=True)
    targets, sources = order[:, : max(1, count)], order[:, count:]
    cosine = torch.bmm(take_rows(rows, sources), take_rows(rows, targets).transpose(1, 2))
    best = cosine.masked_fill(~where.gather(1, targets)[:, None, :], -1.0).max(2)
    value = torch.zeros_like(rows[:, :, 0]).scatter(1, sources, best.values)
    return value, torch.zeros_like(order).scatter(1, sources, targets.gather(1, best.indices))
