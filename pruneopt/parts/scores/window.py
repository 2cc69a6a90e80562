"""Number of the window that a token lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Grouping, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Window(Grouping):
    """Index of the token's window, `[B,N]` whole numbers: the groups of a quota problem, not a ranking.

    The grid is cut into `columns` by `rows` windows as equal as whole cells allow, numbered row by row,
    separately for every image, crop or frame of a sample.
    """

    name: ClassVar[str] = "window"
    source: ClassVar[str] = "Window FastV (ACL Findings 2025, arXiv 2502.11501)"
    tags: ClassVar[frozenset[str]] = frozenset({"groups", "uses_positions"})
    columns: int = param(4, low=1, doc="windows across")
    rows: int = param(4, low=1, doc="windows down")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy", "grid", "group"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        xy, grid = signals["xy"].long(), signals["grid"].long().clamp_min(1)
        column = xy[:, :, 0] * self.columns // grid[:, :, 0]
        row = xy[:, :, 1] * self.rows // grid[:, :, 1]
        window = row * self.columns + column
        group = signals["group"].masked_fill(~signals.mask, 0)
        return (group * self.columns * self.rows + window).float()
