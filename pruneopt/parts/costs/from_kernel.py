"""A kernel as a cost: distance in the space that the kernel spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import CostTerm, Kernel, Weighted, sum_param
from pruneopt.parts._sums import added, added_rows
from pruneopt.problems.row_sums import Total
from pruneopt.problems.rows import Beside, Rows
from pruneopt.signals import Signals


@dataclass(frozen=True)
class CostFromKernel(CostTerm):
    """`K_ii + K_jj - 2 K_ij`, `[B,N,N]`, in kernel units; lower is cheaper, small means alike.

    For a positive semi-definite kernel the squared distance of its feature vectors (Schoenberg 1938), hence
    of negative type; for `cosine` twice `cosine_distance`.
    """

    name: ClassVar[str] = "from_kernel"
    source: ClassVar[str] = "Schoenberg 1938"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric", "zero_diagonal"})
    kernels: tuple[Weighted, ...] = sum_param(Kernel, {"cosine": "cosine"}, doc="summands of the kernel")

    @property
    def negative_type(self) -> bool:
        return all("psd" in s.part.all_tags and s.weight >= 0 and s.normalize == "none" for s in self.kernels)

    def __call__(self, signals: Signals) -> Float[Tensor, "B N N"]:
        kernel = added(self.kernels, signals, pairwise=True)
        own = kernel.diagonal(dim1=1, dim2=2)
        return (own[:, :, None] + own[:, None, :]).sub_(kernel, alpha=2)

    def by_rows(self, signals: Signals) -> Rows:
        kernel = added_rows(self.kernels, signals)
        return Total((Beside(kernel.own()), kernel), (1.0, -2.0))
