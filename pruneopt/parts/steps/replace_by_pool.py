"""Average pooling to exactly as many tokens as were kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ReplaceByPool(Step):
    """Replace the selection by equally many pooled tokens of the grid; only its counts are used.

    Problem, scores and solver decide nothing but the number, so this ends a control, never a method.

    The k tokens are laid out in strips of the grid, as square as it allows, with as equal a number in each
    strip as whole numbers permit, so every k works.  `mode=average` gives every token to one cell, a cell
    to its mean; `area` weighs tokens by the area they share with a cell, which is area-averaging
    down-sampling of the token map.  A pooled token takes the place of the token nearest to its cell's
    centre.  The problem must cover one whole grid: use `budget.scope=group` and prune before any other cut.

    Down-sampling pixels before the encoder would also change what the encoder sees.
    """

    name: ClassVar[str] = "replace_by_pool"
    source: ClassVar[str] = "control of arXiv 2502.11501"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    asks: ClassVar[frozenset[str]] = frozenset({"merge"})
    mode: str = param("average", choices=("average", "area"), doc="whole tokens or shared area")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy", "grid"})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep = torch.zeros_like(selection.keep)
        merge = identity_rows(keep)
        for b, k in enumerate(selection.known_counts):
            real = signals.mask[b].nonzero().squeeze(1)
            columns, rows = (int(v) for v in signals["grid"][b, real[0]])
            if columns * rows != len(real):
                raise SignalError(
                    f"replace_by_pool needs a whole grid of {columns} x {rows} tokens, problem {b} has "
                    f"{len(real)}; "
                    "use it as the only cut, with budget.scope=group"
                )
            weights = self.weights(columns, rows, k=k).to(keep.device)
            xy = signals["xy"][b, real].long()
            weights = weights[:, xy[:, 1], xy[:, 0]]
            place = carriers(weights)
            keep[b, real[place]] = True
            merge[b, real[place][:, None], real[None, :]] = weights / weights.sum(1, keepdim=True)
        return merged(selection, merge, keep=keep, importance=None, rank=None)

    def weights(self, columns: int, rows: int, *, k: int) -> Tensor:
        """`[k,rows,columns]` share of each grid cell in each pooled token."""
        strips = min(rows, max(1, -(-k // columns), round((k * rows / columns) ** 0.5)))
        strips = min(strips, k)
        across = [k // strips + (i < k % strips) for i in range(strips)]
        down = overlap(rows, strips, mode=self.mode)
        out = []
        for strip, parts in enumerate(across):
            side = overlap(columns, parts, mode=self.mode)
            out.append(down[strip][None, :, None] * side[:, None, :])
        return torch.cat(out)


def overlap(cells: int, parts: int, *, mode: str) -> Tensor:
    """`[parts,cells]` length of cell i inside part p when `parts` equal parts cover `cells` cells.

    `average` counts whole cells only: cell i belongs to part `i * parts // cells`.
    """
    cell = torch.arange(cells)
    if mode == "average":
        return (cell * parts // cells == torch.arange(parts)[:, None]).float()
    edges = torch.arange(parts + 1, dtype=torch.float64) * cells / parts
    low, high = edges[:-1, None], edges[1:, None]
    shared = torch.minimum(high, cell + 1.0) - torch.maximum(low, cell.double())
    return shared.clamp_min(0).float()


def carriers(weights: Tensor) -> Tensor:
    """`[k]` different tokens, one per pooled token: its heaviest one that no earlier token took."""
    free = torch.ones(weights.shape[1], dtype=torch.bool, device=weights.device)
    out = torch.empty(len(weights), dtype=torch.int64, device=weights.device)
    middle = torch.arange(weights.shape[1], device=weights.device)
    for i, row in enumerate(weights):
        heavy = (row == row.masked_fill(~free, -1).amax()) & free
        members = middle[heavy]
        out[i] = members[len(members) // 2]
        free[out[i]] = False
    return out
