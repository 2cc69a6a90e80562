"""Merge every dropped token into the kept one most like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts._ledger import ledger
from pruneopt.parts.scores.every_kth import EveryKth
from pruneopt.parts.scores.match_similarity import best_destination, metric_rows
from pruneopt.parts.steps._merging import homed_rows, merged, protected_of, sums_at
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
        target = self._targets(selection)
        moves = ~keep & signals.mask & target.any(1, keepdim=True)
        home = self._home(selection, signals, target=target).masked_fill(~moves, 0)
        one = torch.ones_like(keep, dtype=torch.float32)
        size = signals["size"].float() if self.carry else one
        if self.combine == "add_mean":
            own, given = one, moves / sums_at(home, moves.float()).clamp_min(1).gather(1, home)
        else:
            weight = size if self.combine == "size_mean" else one
            total = weight + sums_at(home, weight * moves)
            total = total.clamp_min(torch.finfo(total.dtype).tiny)
            own, given = weight / total, weight * moves / total.gather(1, home)
        grown = size + sums_at(home, size * moves)
        return merged(selection, homed_rows(home, given, own=own), size=grown, rank=self._rank(selection))

    def _home(self, selection: Selection, signals: Signals, *, target: Tensor) -> Tensor:
        """`[B,N]` the target most like each token that is none."""
        # As long as no step has changed what is kept, the score may have compared all with these targets.
        where, first = ledger().protects, selection.keep is getattr(selection.solution, "keep", None)
        if self.targets == "protected" and first and isinstance(where, EveryKth):
            return best_destination(signals, self.signal, stride=where.stride)[1]
        rows = metric_rows(signals[self.signal])
        return nearest_target(rows, target, most=max(selection.known_counts))

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


def nearest_target(rows: Tensor, target: Tensor, *, most: int) -> Tensor:
    """`[B,N]` index of the target most like each token, ties to the lower index; at most `most` targets."""
    order = (~target).to(torch.int8).argsort(dim=1, stable=True)[:, : max(1, most)]
    cosine = torch.bmm(rows, take_rows(rows, order).transpose(1, 2))
    cosine = cosine.masked_fill(~target.gather(1, order)[:, None, :], -torch.inf)
    return order.gather(1, cosine.argmax(2))
