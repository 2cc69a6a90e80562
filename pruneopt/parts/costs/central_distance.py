"""Distance of a token from the centre of its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm
from pruneopt.signals import Signals


@dataclass(frozen=True)
class CentralDistance(CostTerm):
    """`C_e(i) = |xy_i - centre|`, `[B,N]` in grid cells; lower (nearer the centre) is cheaper.

    The centre is `((W-1)/2, (H-1)/2)`.  Source: TopV, absolute central factor; a weight of 0.01 only matters
    in raw grid units, hence no scaling here.  The public reimplementation takes the middle index instead,
    half a cell off on even grids.
    """

    name: ClassVar[str] = "central_distance"
    source: ClassVar[str] = "TopV (CVPR 2025), absolute central factor"
    shape: ClassVar[str] = "unary"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_positions"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy", "grid"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        centre = (signals["grid"].float() - 1) / 2
        return (signals["xy"].float() - centre).norm(dim=2)
