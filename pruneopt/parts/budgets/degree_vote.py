"""Drop as many tokens as have many twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.parts import BudgetRule, param
from pruneopt.parts.scores.every_kth import is_destination
from pruneopt.parts.scores.twin_redundancy import TwinRedundancy, twins_of
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class DegreeVote(BudgetRule):
    """Drop one token per even token with at least `degree` odd ones at cosine `threshold` or more.

    Counts `[B]`; the plain budget is ignored.  `pool` averages the votes over the crops or frames of a
    sample, truncated; SAINT's code averages over the whole batch, which would let batch mates decide.
    Source: SAINT section 3; its figure says more than K neighbours, its code at least K.
    """

    name: ClassVar[str] = "degree_vote"
    source: ClassVar[str] = "SAINT (arXiv 2503.11549), voting"
    threshold: float = param(0.83, low=-1, high=1, doc="cosine from which two tokens are twins")
    degree: int = param(6, low=1, doc="twins that make a token redundant")
    signal: str = param("keys", doc="metric; heads are averaged")
    pool: bool = param(True, doc="one vote for all crops of a sample")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def misfit(self, stage: StageSpec) -> str | None:
        for summand in stage.problem.scores:
            part = summand.part
            if not isinstance(part, TwinRedundancy):
                continue
            for name in ("threshold", "signal"):
                ours, theirs = getattr(self, name), getattr(part, name)
                if ours != theirs:
                    return (
                        f"budget.rule.{name} is {ours} and problem.scores.{summand.label}.{name} is "
                        f"{theirs}; the tokens that are counted must be those that are ranked, so set both"
                    )
        return None

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        _, degree = twins_of(signals, self.signal, threshold=self.threshold)
        even = signals.mask & ~is_destination(signals.mask, 2)
        votes = ((degree >= self.degree) & even).sum(1)
        if self.pool:
            size = int(signals.sample.max()) + 1
            total = torch.zeros(size, dtype=torch.int64, device=k.device)
            members = torch.zeros_like(total)
            total.scatter_add_(0, signals.sample, votes)
            members.scatter_add_(0, signals.sample, torch.ones_like(votes))
            votes = (total // members.clamp_min(1))[signals.sample].minimum(even.sum(1))
        return (signals.mask.sum(1) - votes).clamp_min(1)
