"""Enrich every kept token with its nearest neighbours, weighted by importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.tensors import flat_heads, take_rows, unit_rows


@dataclass(frozen=True)
class NeighbourSum(Step):
    """A kept token becomes a weighted combination of itself and its `neighbours` most alike tokens.

    Weights are the importance `a` of the selection.  `combine=average` divides by the sum of weights, the
    token itself included, over neighbours that were dropped (the paper's weighted average per cluster);
    `sum` is `x_i + sum_j a_j x_j` over all other tokens, kept ones as they were (the released code, where
    the division is commented out).  `extra` adds one token, the importance-weighted sum of all dropped
    ones, carried by the best dropped token and emitted last (released code only).

    `order=score` emits by falling importance, as the code does.
    """

    name: ClassVar[str] = "neighbour_sum"
    source: ClassVar[str] = "PruMerge (ICCV 2025), section 3.2"
    signal: str = param("encoder_keys", doc="metric, heads side by side")
    neighbours: int = param(32, low=1, doc="tokens that are added to each kept one")
    combine: str = param("average", choices=("average", "sum"), doc="weighted average or plain sum")
    extra: bool = param(False, doc="one more token for all that was dropped")
    order: str = param("index", choices=("index", "score"), doc="order of emission")

    @property
    def asks(self) -> frozenset[str]:
        return (
            frozenset({"merge"})
            if self.order == "index" and not self.extra
            else frozenset({"merge", "reordering"})
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        if selection.importance is None:
            raise SpecError("step neighbour_sum weighs tokens by importance; give the problem scores")
        keep, real = selection.keep, signals.mask
        weight = selection.importance.float().masked_fill(~real, 0)
        near = self._neighbours(signals, keep)
        if self.combine == "sum":
            merge = identity_rows(keep) + near * weight[:, None, :]
        else:
            merge = (identity_rows(keep) + near) * weight[:, None, :]
            total = merge.sum(2, keepdim=True)
            merge = torch.where(total > 0, merge / torch.where(total > 0, total, 1), identity_rows(keep))
        order = -weight if self.order == "score" else torch.zeros_like(weight)
        if not self.extra:
            rank = order if self.order == "score" else selection.rank
            return merged(selection, merge, rank=rank)
        dropped = real & ~keep
        carrier = torch.nn.functional.one_hot(
            weight.masked_fill(~dropped, -torch.inf).argmax(1), keep.shape[1]
        )
        carrier = carrier.bool() & dropped
        row = (weight * dropped)[:, None, :].expand_as(merge)
        merge = torch.where(carrier[:, :, None], row, merge)
        if self.order == "index" and selection.rank is not None:
            order = selection.rank
        return merged(selection, merge, keep=keep | carrier, rank=torch.where(carrier, torch.inf, order))

    def count(self, kept: int, tokens: int) -> int:
        return min(kept + 1, tokens) if self.extra else kept

    def _neighbours(self, signals: Signals, keep: Tensor) -> Tensor:
        """`[B,N,N]` 1 where token j is among the nearest of kept token i; rows of others are zero."""
        rows = signals[self.signal]
        rows = unit_rows(flat_heads(rows) if rows.dim() == 4 else rows)
        batch, tokens = keep.shape
        most = max(1, int(keep.sum(1).max()))
        kept = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        cosine = torch.bmm(take_rows(rows, kept), rows.transpose(1, 2))
        allowed = signals.mask if self.combine == "sum" else signals.mask & ~keep
        cosine = cosine.masked_fill(~allowed[:, None, :], -torch.inf)
        cosine = cosine.scatter(2, kept[:, :, None], -torch.inf)
        best = cosine.topk(min(self.neighbours, tokens), dim=2)
        taken = (best.values > -torch.inf) & keep.gather(1, kept)[:, :, None]
        near = torch.zeros_like(cosine).scatter_(2, best.indices, taken.to(cosine.dtype))
        out = torch.zeros(batch, tokens, tokens, dtype=cosine.dtype, device=keep.device)
        return out.scatter_(1, kept[:, :, None].expand(-1, -1, tokens), near)
