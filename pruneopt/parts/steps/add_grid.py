"""Add a uniform sub-sampling whose density follows the number kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.parts import Step, param
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.tensors import places


@dataclass(frozen=True)
class AddGrid(Step):
    """Also keep every s-th token, `s = int(int(N / kept) / divide)`, at least 1; counts are read back.

    `start`: from the first token or from half a stride.  `skip_last` never samples the last token, as
    PruMerge's code, whose grid ends at 575 of 576.  `order=appended` emits the added tokens after the kept
    ones.  Source: PruMerge+ (the code raises where s would be 0, that is above a third kept).
    """

    name: ClassVar[str] = "add_grid"
    source: ClassVar[str] = "PruMerge+ (ICCV 2025), section 3.3"
    divide: int = param(3, low=1, doc="times more grid tokens than kept ones, roughly")
    start: str = param("first", choices=("first", "half"), doc="where the grid starts")
    skip_last: bool = param(False, doc="never sample the last token")
    order: str = param("index", choices=("index", "appended"), doc="order of emission")

    @property
    def asks(self) -> frozenset[str]:
        return frozenset() if self.order == "index" else frozenset({"reordering"})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep, real = selection.keep, signals.mask
        tokens, kept = real.sum(1, keepdim=True), keep.sum(1, keepdim=True).clamp_min(1)
        stride = (tokens // kept // self.divide).clamp_min(1)
        place = places(real)
        first = stride // 2 if self.start == "half" else torch.zeros_like(stride)
        grid = real & (place >= first) & ((place - first) % stride == 0)
        if self.skip_last:
            grid = grid & (place < tokens - 1)
        rank = selection.rank
        if self.order == "appended":
            before = torch.zeros_like(place, dtype=torch.float32)
            if selection.importance is not None:
                before = -selection.importance.float()
            rank = torch.where(keep, before, 1e9 + place)
        return replace(selection, keep=keep | grid, counts=None, rank=rank)
