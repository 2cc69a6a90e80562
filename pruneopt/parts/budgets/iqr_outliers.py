"""Keep the outliers of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import BudgetRule, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class IQROutliers(BudgetRule):
    """Keep the tokens whose score is above `Q3 + factor (Q3 - Q1)`: counts `[B]`, the plain budget ignored.

    Quartiles interpolate linearly; where there is no outlier one token stays.  `cap` is the largest share
    of the tokens that may stay.  Source: PruMerge section 3.1.  Its code pools the quartiles over the
    batch and computes `int(N * (n / N))`, which may lose one token to rounding; neither is done here.
    """

    name: ClassVar[str] = "iqr_outliers"
    source: ClassVar[str] = "PruMerge (ICCV 2025), section 3.1"
    factor: float = param(1.5, low=0, doc="times the interquartile range")
    cap: float = param(1.0, above=0, high=1, doc="largest share that may stay")

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        if importance is None:
            raise SpecError("budget.rule iqr_outliers counts outliers of the scores; give the problem scores")
        low = masked_quantile(importance, signals.mask, q=0.25)
        high = masked_quantile(importance, signals.mask, q=0.75)
        bound = high + self.factor * (high - low)
        count = ((importance > bound[:, None]) & signals.mask).sum(1)
        most = (signals.mask.sum(1) * self.cap).long()
        return count.minimum(most).clamp_min(1)


def masked_quantile(values: Tensor, mask: Tensor, *, q: float) -> Tensor:
    """Linearly interpolated quantile `[B]` of the real entries of each row."""
    ranked = values.masked_fill(~mask, torch.inf).sort(dim=1).values
    place = (mask.sum(1) - 1).clamp_min(0).to(torch.float64) * q
    low = place.floor().long()
    high = place.ceil().long()
    a, b = ranked.gather(1, low[:, None]).squeeze(1), ranked.gather(1, high[:, None]).squeeze(1)
    return torch.lerp(a, b, (place - low).to(values.dtype))
