"""Recycle dropped tokens into one per cell of the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import homed_rows, merged, sums_at
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class GridRecycle(Step):
    """The dropped tokens of a cell become their importance-weighted mean, at the most important of them.

    A cell is `floor(row / cell), floor(column / cell)` on the token's own grid (`cell` may be a fraction).
    The carrier keeps its importance, the spatial order stays, and counts are read back, because the number
    of occupied cells depends on what was dropped.  Source: VFlowOpt section 3.3.
    """

    name: ClassVar[str] = "grid_recycle"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), section 3.3"
    asks: ClassVar[frozenset[str]] = frozenset({"merge"})
    cell: float = param(4.0, low=1, doc="side of a cell in tokens, a real number")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy", "group"})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        if selection.importance is None:
            raise SpecError("step grid_recycle weighs tokens by importance; give the problem scores")
        dropped = signals.mask & ~selection.keep
        weight = selection.importance.float()
        home = self._carriers(signals, weight, dropped=dropped)
        carrier = torch.zeros_like(dropped).scatter(1, home, True) & dropped
        # A cell whose tokens are worth nothing becomes their plain mean.
        worth, count = weight.masked_fill(~dropped, 0), dropped.to(weight.dtype)
        total = sums_at(home, worth)
        worth = torch.where(total.gather(1, home) > 0, worth, count)
        share = worth / torch.where(total > 0, total, sums_at(home, count).clamp_min(1)).gather(1, home)
        merge = homed_rows(home, share, own=torch.where(carrier, share, 1.0))
        return replace(merged(selection, merge), keep=selection.keep | carrier, counts=None)

    def _carriers(self, signals: Signals, weight: Tensor, *, dropped: Tensor) -> Tensor:
        """`[B,N]` place of the most important dropped token of the cell of each, ties to the lower index.

        A token that is not dropped is its own.
        """
        cell = (signals["xy"].double() / self.cell).floor().long()
        number = signals["group"].long()
        for along in (cell[:, :, 0], cell[:, :, 1]):
            number = number * (along.amax() + 1) + along
        number = number.masked_fill(~dropped, -1)
        # Listed by cell, then by falling importance: the first of a run carries it.
        ranked = weight.argsort(dim=1, descending=True, stable=True)
        number, inside = number.gather(1, ranked).sort(dim=1, stable=True)
        ranked = ranked.gather(1, inside)
        first = torch.ones_like(dropped)
        first[:, 1:] = number[:, 1:] != number[:, :-1]
        slot = torch.arange(ranked.shape[1], device=ranked.device)
        start = slot.masked_fill(~first, 0).cummax(1).values
        home = torch.empty_like(ranked).scatter_(1, ranked, ranked.gather(1, start))
        return torch.where(dropped, home, slot)
