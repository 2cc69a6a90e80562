"""A cost as a kernel: cheap pairs are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts import CostTerm, Kernel, Weighted, param, sum_param
from pruneopt.parts._sums import added, added_rows
from pruneopt.problems.row_sums import Mapped, averaged
from pruneopt.problems.rows import Rows
from pruneopt.signals import Signals


@dataclass(frozen=True)
class KernelFromCost(Kernel):
    """`exp(-C_ij / h)` with both directions of the cost averaged, `[B,N,N]`; cheap pairs are alike.

    `h` is a number in cost units, or `median`: the median real cost of two different tokens, per problem (1
    where that is not above zero).  Positive semi-definite where the cost is of negative type (Schoenberg
    1938); the tag `psd` is there only where that is proven: terms that say so or are unary, weights of at
    least zero, and no softmax.  `repair: ridge` makes it so for any cost: the diagonal is raised by what the
    smallest eigenvalue falls below zero, O(N^3).
    """

    name: ClassVar[str] = "from_cost"
    source: ClassVar[str] = "Schoenberg 1938"
    cost: tuple[Weighted, ...] = sum_param(
        CostTerm, {"distance": "cosine_distance"}, doc="summands of the cost"
    )
    h: float | str = param("median", above=0, doc="cost at which a pair is alike by 1/e: a number, or median")
    repair: str = param("none", choices=("none", "ridge"), doc="what is done to a kernel that is not psd")

    def __post_init__(self) -> None:
        super().__post_init__()
        for term in self.cost:
            if term.external:
                raise SpecError(
                    f"from_cost.cost.{term.label}: {term.part.name} reaches external points, and makes no "
                    "tokens alike; as targets they belong to the score transport or a kind that serves them"
                )
        if all(getattr(term.part, "shape", "") == "unary" for term in self.cost):
            raise SpecError(
                "from_cost.cost is unary, and a kernel of it has rank one; add a term of pairs, or write the "
                "cost as a score, {kind: from_cost, cost: {...}} in problem.scores"
            )
        if isinstance(self.h, str) and self.h != "median":
            raise SpecError(f"from_cost.h must be a number above 0 or median, got {self.h!r}")

    @property
    def all_tags(self) -> frozenset[str]:
        proven = all(
            getattr(s.part, "shape", "") == "unary" or getattr(s.part, "negative_type", False)
            for s in self.cost
        ) and all(s.weight >= 0 and s.normalize != "softmax" for s in self.cost)
        return super().all_tags | ({"psd"} if proven or self.repair == "ridge" else set())

    def __call__(self, signals: Signals) -> Float[Tensor, "B N N"]:
        cost = added(self.cost, signals, pairwise=True)
        cost = (cost + cost.transpose(1, 2)) / 2
        h = self.h if isinstance(self.h, float | int) else median_pair(cost, signals.mask)[:, None, None]
        kernel = (-cost / h).exp()
        if self.repair == "ridge":
            real = signals.mask[:, :, None] & signals.mask[:, None, :]
            least = torch.linalg.eigvalsh(kernel.double().masked_fill(~real, 0))[:, 0].clamp_max(0)
            kernel = kernel - torch.diag_embed(least[:, None].expand(kernel.shape[:2])).to(kernel.dtype)
        return kernel

    def by_rows(self, signals: Signals) -> Rows:
        """Raises ProblemError for a median or a ridge, which are of all pairs at once."""
        if self.repair != "none" or isinstance(self.h, str):
            raise ProblemError(
                "from_cost ranks all pairs for h=median and decomposes the matrix for repair=ridge, and here "
                "are too many tokens for one: give h a number and leave repair out"
            )
        cost, h = averaged(added_rows(self.cost, signals)), self.h
        proven = "psd" in self.all_tags
        return Mapped(cost, lambda c: c.neg_().div_(h).exp_(), is_definite=proven)


def median_pair(cost: Float[Tensor, "B N N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """`[B]`: the lower median of the real entries off the diagonal; 1 where it is not above zero."""
    pair = (
        mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    )
    ranked = cost.masked_fill(~pair, torch.inf).flatten(1).sort(1).values
    middle = ((pair.flatten(1).sum(1) - 1) // 2).clamp_min(0)
    found = ranked.gather(1, middle[:, None])[:, 0]
    return torch.where((found > 0) & (found < torch.inf), found, torch.ones_like(found))
