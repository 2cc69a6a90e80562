"""Share a budget over the crops of a picture by what the thumbnail says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, Score, param
from pruneopt.parts.scores.thumbnail_score import registered_score, score_map, thumbnails
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class CropAllocation(BudgetRule):
    """Crop j keeps `int(N_j min(1, R (1 + s_j - mean s)))` tokens, `s` a softmax of summed scores.

    The thumbnail's score map is cut into one cell per crop (the last row and column take the remainder);
    the sum of each cell over `temperature` goes through a softmax.  The mean of `s` is 1 over the number of
    crops, so the counts average to `retention` unless one is clipped.  The thumbnail and pictures without
    crops keep the plain budget.  `retention` must be `budget.keep`; write `retention: ${budget.keep}`.

    Source: GlobalCom2 section 3.2.  Only summed logits give the temperature of 10 any effect (the code);
    sums of probabilities are at most 1 and make the shares almost equal (the paper's words).
    """

    name: ClassVar[str] = "crop_allocation"
    source: ClassVar[str] = "GlobalCom2 (AAAI 2026), section 3.2"
    retention: float = param(0.25, above=0, high=1, doc="mean share that stays")
    temperature: float = param(10.0, above=0, doc="temperature of the softmax over crops")
    score: str = param("cls_attention", doc="registered score of the thumbnail")
    options: Mapping[str, Any] = param({}, doc="parameters of that score")

    def misfit(self, stage: StageSpec) -> str | None:
        keep = stage.budget.keep
        if keep == self.retention:
            return None
        return (
            f"budget.rule.retention is {self.retention} and budget.keep is {keep}; crops share what "
            "thumbnails keep, so write budget.rule.retention as ${budget.keep}, a ratio"
        )

    @property
    def inner(self) -> Score:
        return registered_score(self.score, self.options)

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {"tile", "xy", "grid"}

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        values = self.inner(signals)
        tile = signals["tile"][:, 0].long()
        tokens = signals.mask.sum(1)
        out = k.clone()
        for problem, crops in thumbnails(signals):
            ratio = self.retention * (
                1 + self.shares(score_map(values, signals, problem=problem), tile[crops])
            )
            count = (tokens[crops].double() * ratio.clamp_max(1).double()).long()
            out[crops] = count.clamp_min(1).minimum(tokens[crops])
        return out

    def shares(self, image: Tensor, tile: Tensor) -> Tensor:
        """`[G]` float64 softmax shares of the crops at `tile` `[G,2]`, less their mean."""
        columns, rows = (int(v) for v in tile.amax(0) + 1)
        row = (torch.arange(image.shape[0]) // max(1, image.shape[0] // rows)).clamp_max(rows - 1)
        column = (torch.arange(image.shape[1]) // max(1, image.shape[1] // columns)).clamp_max(columns - 1)
        cell = (row[:, None] * columns + column[None, :]).flatten().to(image.device)
        total = torch.zeros(rows * columns, dtype=image.dtype, device=image.device)
        total.scatter_add_(0, cell, image.flatten())
        logits = total.double() / self.temperature
        weight = (logits - logits.max()).exp()
        share = weight / (weight.sum() + 1e-8)  # as coded: an exact n r falls to the integer below
        return (share - share.mean())[tile[:, 1] * columns + tile[:, 0]]
