"""Cosine similarity between visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Kernel, param
from pruneopt.problems.rows import Cosines, Rows
from pruneopt.signals import Signals
from pruneopt.tensors import cosine_gram, cosine_rows


@dataclass(frozen=True)
class CosineKernel(Kernel):
    """`cos(x_i, x_j)`, `[B,N,N]` float32, symmetric and positive semi-definite up to rounding.

    Source: CDPruner section 3 (the Gram matrix of normalised projected tokens) and GreedyPrune (conflicts).
    """

    name: ClassVar[str] = "cosine"
    source: ClassVar[str] = "CDPruner (NeurIPS 2025), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric", "psd", "scale_free"})
    signal: str = param("features", doc="signal whose rows are compared")
    heads: str = param("joined", choices=("joined", "mean"), doc="what to do with heads")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N N"]:
        return cosine_gram(signals[self.signal], signals.given_mask, heads=self.heads)

    def by_rows(self, signals: Signals) -> Rows:
        return Cosines(cosine_rows(signals[self.signal], signals.given_mask, heads=self.heads))
