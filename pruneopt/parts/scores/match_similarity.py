"""Bipartite matching with every s-th token: who has a destination much like itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.parts._ledger import once
from pruneopt.parts.scores.every_kth import is_destination, stride_misfit
from pruneopt.signals import Signals
from pruneopt.tensors import take_rows, unit_rows

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class MatchSimilarity(Score):
    """Minus the best cosine of a token to a destination other than itself, `[B,N]` float32; higher is kept.

    Destinations are every `stride`-th token (the last of each block).  They must stay, which the problem
    says: `protect.where: {kind: every_kth, stride: 2}`; then the least matched sources are kept beside them,
    and `merge_nearest` with `targets: protected` merges what was dropped.  Source: ToMe section 3
    (`stride=2` on head-mean keys); AIM merges with the same rule.
    """

    name: ClassVar[str] = "match_similarity"
    source: ClassVar[str] = "ToMe (ICLR 2023), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    signal: str = param("features", doc="metric; heads are averaged")
    stride: int = param(2, low=2, doc="one destination per this many tokens")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def misfit(self, stage: StageSpec) -> str | None:
        return stride_misfit(self.stride, stage)

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return -best_destination(signals, self.signal, stride=self.stride)[0]


def metric_rows(metric: Tensor) -> Tensor:
    """Unit rows `[B,N,*]` of a metric, heads averaged where there are any."""
    return unit_rows(metric.float().mean(1) if metric.dim() == 4 else metric)


def best_destination(signals: Signals, name: str, *, stride: int) -> tuple[Tensor, Tensor]:
    """Largest cosine of each token to a destination other than itself and its index, `[B,N]` each.

    Ties to the lower index.  Without any such destination the cosine is -1.  `name`: signal of the metric.
    """
    metric, mask = signals[name], signals.mask

    def make() -> tuple[Tensor, Tensor]:
        rows, where = metric_rows(metric), is_destination(mask, stride)
        targets = destinations(where, stride=stride)
        cosine = torch.bmm(rows, take_rows(rows, targets).transpose(1, 2))
        itself = targets[:, None, :] == torch.arange(rows.shape[1], device=rows.device)[:, None]
        best = cosine.masked_fill(~where.gather(1, targets)[:, None, :] | itself, -1.0).max(2)
        return best.values, targets.gather(1, best.indices)

    return once(make, best_destination, stride, of=(metric, mask))


def destinations(where: Tensor, *, stride: int) -> Tensor:
    """`[B,M]` int64 places of the True entries of `where` `[B,N]`, then of others."""
    return (~where).to(torch.int8).argsort(dim=1, stable=True)[:, : max(1, where.shape[1] // stride)]
