"""Attention that visual tokens get from query tokens of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.parts import Score, param
from pruneopt.signals import Signals

_QUERIES = ("last", "text", "visual", "all")


@dataclass(frozen=True)
class AttentionRow(Score):
    """Mean attention from some query tokens, `[B,N]` float32 in [0,1]; higher is kept.

    `query`: the last prompt token, every text token after the picture, the visual tokens (causal zeros
    count, so early tokens are favoured), or both of the latter.  `ahead` takes the attention that the next
    layer's own weights give.  Heads are reduced first, then queries are averaged; nothing is renormalised.

    Source: FastV (`last`, `ahead=false`), whose text describes the attention received from all other tokens
    (`all`) while its code reads the last row; PyramidDrop's code (`last`, `ahead=true`); TransPrune's
    instruction-guided attention (`text`, `ahead=true`); VisionDrop (`visual`, `ahead=true`).
    """

    name: ClassVar[str] = "attention_row"
    source: ClassVar[str] = "FastV (ECCV 2024), section 4"
    query: str = param("last", choices=_QUERIES, doc="whose attention counts")
    ahead: bool = param(False, doc="use the next layer's weights")
    heads: str = param("mean", choices=("mean", "max", "sum"), doc="reduction over heads")

    @property
    def needs(self) -> frozenset[str]:
        kind = "lookahead" if self.ahead else "attention"
        rows = ("text", "visual") if self.query == "all" else (self.query,)
        extra = {"text_mask"} if "text" in rows else set()
        return frozenset({f"{kind}_{row}" for row in rows} | extra)

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        total: Tensor | float = 0.0
        queries: Tensor | float = 0.0
        for name in sorted(self.needs - {"text_mask"}):
            rows = self._heads(signals[name].float())
            if name.endswith("_last"):
                return rows
            real = signals["text_mask"] if name.endswith("_text") else signals.mask
            total = total + (rows * real[:, :, None]).sum(1)
            queries = queries + real.sum(1, keepdim=True)
        if not isinstance(total, Tensor) or not isinstance(queries, Tensor):
            raise SignalError(f"attention_row found no rows for query={self.query!r}")
        return total / queries.clamp_min(1)

    def _heads(self, rows: Tensor) -> Tensor:
        if self.heads == "max":
            return rows.amax(1)
        return rows.mean(1) if self.heads == "mean" else rows.sum(1)
