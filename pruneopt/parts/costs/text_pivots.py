"""Distance of visual tokens from a few strong text tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, param
from pruneopt.signals import Signals
from pruneopt.tensors import flat_heads, keep_top, unit_rows

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class TextPivots(CostTerm):
    """`1 - cos(t_p, x_j)` from the `count` text tokens with the largest key norm, `[B,T,N]`.

    Rows of text tokens that are not pivots are +inf, so that a pivot keeps its place in the text.  The norm
    is the L1 norm over all heads of the key after rotary embedding.  Source: DART section 3 and its code
    (the cosine is taken after the model's final norm); tokens before the picture are never pivots.
    """

    name: ClassVar[str] = "text_pivots"
    source: ClassVar[str] = "DART (EMNLP 2025), pivot selection as released"
    shape: ClassVar[str] = "anchor"
    count: int = param(4, low=1, doc="text pivots")
    p: float = param(1.0, low=1, doc="order of the key norm")
    signal: str = param("hidden_normed", doc="visual tokens")
    text: str = param("text_hidden_normed", doc="text tokens in the same space")

    def misfit(self, stage: StageSpec) -> str | None:
        visited = getattr(stage.solver, "text_pivots", self.count)
        if visited == self.count:
            return None
        return (
            f"problem.anchors has {self.count} text pivots (count) and solver.text_pivots is {visited}; "
            "every text pivot that is chosen must be visited, so set both"
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal, self.text, "text_keys", "text_mask"})

    def strength(self, signals: Signals) -> Float[Tensor, "B A"]:
        return flat_heads(signals["text_keys"].float()).norm(p=self.p, dim=2)

    def __call__(self, signals: Signals) -> Float[Tensor, "B A N"]:
        real = signals["text_mask"]
        pivot = keep_top(
            self.strength(signals), torch.full_like(real[:, 0], self.count, dtype=torch.int64), mask=real
        )
        cosine = torch.bmm(unit_rows(signals[self.text]), unit_rows(signals[self.signal]).transpose(1, 2))
        return (1 - cosine).masked_fill(~pivot[:, :, None], torch.inf)
