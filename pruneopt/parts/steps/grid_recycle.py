"""Recycle dropped tokens into one per cell of the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import identity_rows, merged
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
        cell = (signals["xy"].double() / self.cell).floor().long()
        group = signals["group"].long()
        same = (cell[:, :, None] == cell[:, None, :]).all(3) & (group[:, :, None] == group[:, None, :])
        same &= dropped[:, :, None] & dropped[:, None, :]
        slot = torch.arange(weight.shape[1], device=weight.device)
        less = (weight[:, None, :] < weight[:, :, None]) | (
            (weight[:, None, :] == weight[:, :, None]) & (slot[None, :] >= slot[:, None])
        )
        carrier = dropped & (less | ~same).all(2)
        share = same * weight.masked_fill(~dropped, 0)[:, None, :]
        total = share.sum(2, keepdim=True)
        mean = same / same.sum(2, keepdim=True).clamp_min(1)
        share = torch.where(total > 0, share / torch.where(total > 0, total, 1), mean)
        merge = torch.where(carrier[:, :, None], share, identity_rows(selection.keep))
        return replace(merged(selection, merge), keep=selection.keep | carrier, counts=None)
