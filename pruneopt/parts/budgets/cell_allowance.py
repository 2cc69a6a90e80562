"""Leave room for the tokens that a recycling step brings back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.parts.steps.grid_recycle import GridRecycle
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class CellAllowance(BudgetRule):
    """`k - int(N / cell^2)`: one token less per cell of `cell` by `cell` tokens that is recycled into one.

    The number of cells that hold a dropped token is not `int(N / cell^2)`, so the outcome misses the budget
    by a few per cent.  Source: VFlowOpt as released; goes with the step `grid_recycle`.
    """

    name: ClassVar[str] = "cell_allowance"
    source: ClassVar[str] = "VFlowOpt (ICCV 2025), section 3.3"
    cell: float = param(4.0, low=1, doc="side of a cell in tokens, a real number")

    def misfit(self, stage: StageSpec) -> str | None:
        for i, step in enumerate(stage.steps):
            if isinstance(step, GridRecycle) and step.cell != self.cell:
                return (
                    f"budget.rule.cell is {self.cell} and steps.{i}.cell is {step.cell}; room is left "
                    "for the cells that are recycled, so set both"
                )
        return None

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        room = (signals.mask.sum(1).double() / self.cell**2).long()
        return (k - room).clamp_min(1)
