"""Leave room for the tokens that a recycling step brings back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class CellAllowance(BudgetRule):
    """`k - int(N / cell^2)`: one token less per cell of `cell` by `cell` tokens that is recycled into one.

    The number of cells that hold a dropped token is not `int(N / cell^2)`, so the outcome misses the budget
    by a few per cent.  Source: VFlowOpt as released; goes with the step `grid_recycle`.
    """

    name: ClassVar[str] = "cell_allowance"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), section 3.3"
    cell: float = param(4.0, low=1, doc="side of a cell in tokens, a real number")

    def __call__(self, signals: Signals, k: Tensor, importance: Tensor | None) -> Tensor:
        room = (signals.mask.sum(1).double() / self.cell**2).long()
        return (k - room).clamp_min(1)
