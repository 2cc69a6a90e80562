"""Parts that return what a test gives them, and signals that carry nothing but a shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.parts import BudgetRule, CostTerm, Kernel, Marginal, Score
from pruneopt.schema import Weighted
from pruneopt.signals import Signals


@dataclass(frozen=True, eq=False)
class FixedScore(Score):
    """Returns `values`; `seen` collects the signals that each call was shown."""

    name: ClassVar[str] = "fixed_score"
    values: Any = None
    reads: Any = ("features",)
    seen: Any = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.reads)

    def __call__(self, signals: Signals) -> Tensor:
        self.seen.append(signals)
        return self.values


class FixedKernel(FixedScore, Kernel):
    name: ClassVar[str] = "fixed_kernel"


class FixedMarginal(FixedScore, Marginal):
    name: ClassVar[str] = "fixed_marginal"


@dataclass(frozen=True, eq=False)
class FixedCost(FixedScore, CostTerm):
    name: ClassVar[str] = "fixed_cost"
    strong: Any = None

    def strength(self, signals: Signals) -> Tensor | None:
        self.seen.append(signals)
        return self.strong


class FixedUnaryCost(FixedCost):
    name: ClassVar[str] = "fixed_unary_cost"
    shape: ClassVar[str] = "unary"


@dataclass(frozen=True, eq=False)
class FixedRule(BudgetRule):
    """Answers `counts` and remembers what it was asked."""

    name: ClassVar[str] = "fixed_rule"
    counts: Any = None
    seen: Any = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def __call__(self, signals: Signals, k: Tensor, importance: Tensor | None) -> Tensor:
        self.seen.append((signals, k, importance))
        return self.counts


def bare(batch: int, tokens: int, mask: Tensor | None = None, **more: Tensor) -> Signals:
    """Signals whose features are row numbers: sample 1, token 2 holds [1, 2]."""
    rows = torch.arange(batch)[:, None].expand(batch, tokens)
    places = torch.arange(tokens)[None, :].expand(batch, tokens)
    return Signals({"features": torch.stack([rows, places], 2).float(), **more}, mask)


def scored(values: Tensor, weight: float = 1.0, normalize: str = "none", label: str = "s") -> Weighted:
    return Weighted(label, FixedScore(values), weight, normalize)


def priced(values: Tensor, weight: float = 1.0, normalize: str = "none", label: str = "c") -> Weighted:
    """A pairwise cost for `[B,N,M]`, a unary one for `[B,N]`."""
    part = FixedUnaryCost(values) if values.dim() == 2 else FixedCost(values)
    return Weighted(label, part, weight, normalize)
