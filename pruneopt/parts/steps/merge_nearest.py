"""Merge every dropped token into the kept one most like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.scores.match_similarity import metric_rows
from pruneopt.parts.steps._merging import assigned_rows, identity_rows, merged, protected_of
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.tensors import take_rows


@dataclass(frozen=True)
class MergeNearest(Step):
    """Each dropped token goes to the target with the largest cosine, ties to the lower index.

    `targets`: all `kept` tokens, only those the problem did not protect (`unprotected`: VisionZip's
    contextual tokens, VisionDrop), or only those it did (`protected`: the destinations of ToMe and AIM).
    `combine`: the `mean` of a target and its members (AIM), the mean weighted by `size` (`size_mean`: ToMe;
    `carry` reads the sizes of earlier merges), or the target plus the mean of its members (`add_mean`:
    VisionZip as released, roughly twice the norm).  Without any target nothing is merged.

    `order`: `index`; `protected_first`, as VisionZip emits dominant before contextual tokens; or `matched`,
    unprotected tokens by rising importance before all protected ones, as ToMe's code emits its sources (by
    falling likeness) and destinations.
    """

    name: ClassVar[str] = "merge_nearest"
    source: ClassVar[str] = "ToMe (ICLR 2023), section 3; VisionZip (CVPR 2025), section 3.2"
    signal: str = param("features", doc="metric; heads are averaged")
    moved: ClassVar[dict[str, str]] = {"stride": "targets: protected are what problem.protect.where names"}
    targets: str = param("kept", choices=("kept", "unprotected", "protected"), doc="what takes members")
    combine: str = param("mean", choices=("mean", "size_mean", "add_mean"), doc="value of a target")
    carry: bool = param(False, doc="read `size`, the result of earlier merges")
    order: str = param("index", choices=("index", "protected_first", "matched"), doc="order of emission")

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({"merge"}) if self.order == "index" else frozenset({"merge", "reordering"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal} | ({"size"} if self.carry else set()))

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep = selection.keep
        rows = metric_rows(signals[self.signal])
        target = self._targets(selection)
        moves = ~keep & signals.mask & target.any(1, keepdim=True)
        home = nearest_target(rows, target, moves=moves, most=max(selection.known_counts))
        gather = assigned_rows(home, moves)
        size = signals["size"].float() if self.carry else torch.ones_like(keep, dtype=torch.float32)
        if self.combine == "add_mean":
            merge = identity_rows(keep) + gather / gather.sum(2, keepdim=True).clamp_min(1)
        else:
            weight = size if self.combine == "size_mean" else torch.ones_like(size)
            merge = (identity_rows(keep) + gather) * weight[:, None, :]
            merge = merge / merge.sum(2, keepdim=True).clamp_min(torch.finfo(merge.dtype).tiny)
        total = size + torch.einsum("btj,bj->bt", gather, size)
        return merged(selection, merge, size=total, rank=self._rank(selection))

    def _targets(self, selection: Selection) -> Tensor:
        if self.targets == "unprotected":
            return selection.keep & ~protected_of(selection)
        if self.targets == "protected":
            return protected_of(selection)
        return selection.keep

    def _rank(self, selection: Selection) -> Tensor | None:
        if self.order == "protected_first":
            return (~protected_of(selection)).float()
        if self.order == "matched":
            if selection.importance is None:
                raise SpecError("step merge_nearest orders by importance; give the problem scores")
            return selection.importance.float().masked_fill(protected_of(selection), torch.inf)
        return selection.rank


def nearest_target(rows: Tensor, target: Tensor, *, moves: Tensor, most: int) -> Tensor:
    """`[B,N]` index of the target most like each token of `moves`, ties to the lower index.

    There are at most `most` targets per problem; entries outside `moves` are 0.
    """
    order = (~target).to(torch.int8).argsort(dim=1, stable=True)[:, : max(1, most)]
    cosine = torch.bmm(rows, take_rows(rows, order).transpose(1, 2))
    cosine = cosine.masked_fill(~target.gather(1, order)[:, None, :], -torch.inf)
    return order.gather(1, cosine.argmax(2)).masked_fill(~moves, 0)
