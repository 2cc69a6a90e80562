"""Cosine distance between visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, param
from pruneopt.problems.row_sums import Total
from pruneopt.problems.rows import Cosines, Rows, constant
from pruneopt.signals import Signals
from pruneopt.tensors import cosine_gram, cosine_rows


@dataclass(frozen=True)
class CosineDistance(CostTerm):
    """`1 - cos(x_i, x_j)`, `[B,N,N]` float32 in [0,2]; small means alike.

    A signal with heads is compared with its heads side by side (`heads=joined`) or averaged (`mean`).
    Source: DivPrune section 3 on projected tokens; ToDRE, ZSPAPrune, TrimTokenator and DART use the same
    distance on other signals.  DivPrune's code computes it in the model's dtype; float32 here.
    """

    name: ClassVar[str] = "cosine_distance"
    source: ClassVar[str] = "DivPrune (CVPR 2025), equation 3"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric", "zero_diagonal", "negative_type", "scale_free"})
    signal: str = param("features", doc="signal whose rows are compared")
    heads: str = param("joined", choices=("joined", "mean"), doc="what to do with heads")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N M"]:
        return 1 - cosine_gram(signals[self.signal], signals.given_mask, heads=self.heads)

    def by_rows(self, signals: Signals) -> Rows:
        cosine = Cosines(cosine_rows(signals[self.signal], signals.given_mask, heads=self.heads))
        return Total((constant(1.0, cosine), cosine), (1.0, -1.0))
