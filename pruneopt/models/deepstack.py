"""Features that the text model adds to visual columns after its first layers (Qwen3-VL)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.models.columns import Columns, Move, take


@dataclass(frozen=True)
class Deepstack:
    """`features` of each layer `[tokens,D]`, the columns that get any `[B,W]` bool, and which row of
    `features` each gets `[B,W]` int64.
    """

    features: list[Tensor]
    visual: Tensor
    row: Tensor

    @classmethod
    def of(cls, visual: Tensor, features: list[Tensor]) -> Deepstack:
        """See `ModelAdapter.take_deepstack`: features come in the order of the columns, row after row."""
        number = (visual.flatten().long().cumsum(0) - 1).clamp_min(0)
        return cls(features, visual, number.view(visual.shape))

    def added(self, layer: int, hidden: Tensor) -> Tensor:
        """`hidden` `[B,W,D]` with the features of `layer` at the visual columns that are left."""
        whole = hidden + self.features[layer].to(hidden)[self.row]
        return torch.where(self.visual[:, :, None], whole, hidden)

    def after(self, columns: Columns, move: Move) -> Deepstack:
        """The same once the columns are `columns`; a token that moves takes its features along."""
        visual = take(self.visual, move.order) & columns.valid
        return replace(self, visual=visual, row=take(self.row, move.content))
