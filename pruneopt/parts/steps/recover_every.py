"""Put back every r-th pruned token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pruneopt.parts import Step, param
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class RecoverEvery(Step):
    """Walk the pruned tokens in index order and keep the 0th, r-th, 2r-th and so on.

    Source: TopV, uniform recovery.  Interval 4 for LLaVA-1.5 and 3 for InternVL2; order and offset are
    inferred (the public reimplementation has the same).
    """

    name: ClassVar[str] = "recover_every"
    source: ClassVar[str] = "TopV (CVPR 2025), visual token recovery"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    interval: int = param(4, low=1, doc="keep one of this many pruned tokens")

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        pruned = ~selection.keep & signals.mask
        place = pruned.cumsum(1) - 1
        return replace(selection, keep=selection.keep | (pruned & (place % self.interval == 0)))

    def count(self, kept: int, tokens: int) -> int:
        return kept + -(-(tokens - kept) // self.interval)
