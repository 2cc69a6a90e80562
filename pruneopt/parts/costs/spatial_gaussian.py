"""Distance on the patch grid, saturating at one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, param
from pruneopt.problems.row_sums import Mapped, Total
from pruneopt.problems.rows import Beside, Gram, Rows
from pruneopt.signals import Signals


@dataclass(frozen=True)
class SpatialGaussian(CostTerm):
    """`C_s(i,j) = 1 - exp(-|xy_i - xy_j|^2 / (2 sigma^2))`, `[B,N,N]` in [0,1); lower is cheaper.

    `sigma` is in grid cells.  Source: TopV, relative spatial factor; its sigma is not known, 10 is the value
    of the only public reimplementation.
    """

    name: ClassVar[str] = "spatial_gaussian"
    source: ClassVar[str] = "TopV (CVPR 2025), relative spatial factor"
    tags: ClassVar[frozenset[str]] = frozenset(
        {"uses_positions", "symmetric", "zero_diagonal", "negative_type"}
    )
    sigma: float = param(10.0, above=0, doc="reach in grid cells")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N M"]:
        xy = signals["xy"].float()
        dx = xy[:, :, None, 0] - xy[:, None, :, 0]
        dy = xy[:, :, None, 1] - xy[:, None, :, 1]
        return -(dx.square_().add_(dy.square_()).mul_(-0.5 / self.sigma**2)).expm1_()

    def by_rows(self, signals: Signals) -> Rows:
        """Squares of whole grid cells are exact in float32, whichever way they are computed."""
        xy = signals["xy"].float().masked_fill(~signals.mask[:, :, None], 0)
        squares = Total((Beside(xy.square().sum(2)), Gram(xy)), (1.0, -2.0))
        times = -0.5 / self.sigma**2
        return Mapped(squares, lambda d: d.mul_(times).expm1_().neg_(), is_negative_type=True)
