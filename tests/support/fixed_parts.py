"""Parts that return what a test gives them, and signals that carry nothing but a shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.compose import keep_top
from pruneopt.parts import (
    BudgetRule,
    CostTerm,
    Grouping,
    Kernel,
    Marginal,
    Part,
    Readout,
    Score,
    Step,
    SubsetSolver,
    TransportSolver,
)
from pruneopt.parts.insertions.post_encoder import PostEncoder
from pruneopt.problems.budget import Budget
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Status, SubsetSolution, TransportSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals
from pruneopt.spec.schema import ProblemSpec, StageSpec, Weighted


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


@dataclass(frozen=True, eq=False)
class FeatureScore(Score):
    """The last column of the features, so that it follows tokens through groups; `seen` as above."""

    name: ClassVar[str] = "feature_score"
    seen: Any = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def __call__(self, signals: Signals) -> Tensor:
        self.seen.append(signals)
        return signals["features"][:, :, -1]


@dataclass(frozen=True, eq=False)
class FixedGroups(Grouping):
    """Groups with quotas of their own; `seen` collects what `shares` was asked."""

    name: ClassVar[str] = "fixed_groups"
    values: Any = None
    quotas: Any = None
    seen: Any = field(default_factory=list)

    def __call__(self, signals: Signals) -> Tensor:
        return self.values

    def shares(
        self, group: Tensor, mask: Tensor, *, k: Tensor, importance: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        self.seen.append((group, mask, k, importance))
        return self.quotas


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

    def __call__(self, signals: Signals, k: Tensor, *, importance: Tensor | None) -> Tensor:
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


@dataclass(frozen=True, eq=False)
class SpySolver(SubsetSolver):
    """Keeps the k best of `rank` (the problem's scores when None) and remembers the problems it was given."""

    name: ClassVar[str] = "spy_solver"
    kinds = KindsOffering()
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget"})
    rank: Any = None
    seen: Any = field(default_factory=list)

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        self.seen.append(problem)
        rank = problem.unary if self.rank is None else self.rank
        keep = keep_top(rank, problem.k, mask=problem.real)
        return SubsetSolution(0.0, {}, problem, keep, ended=(Status.HEURISTIC,) * len(keep))


class LooseSolver(SpySolver):
    """Says that it may keep another number than asked for."""

    name: ClassVar[str] = "loose_solver"
    tags: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True, eq=False)
class SpyTransport(TransportSolver):
    """The independent plan; remembers the problems it was given."""

    name: ClassVar[str] = "spy_transport"
    seen: Any = field(default_factory=list)

    def solve(self, problem: TransportProblem) -> TransportSolution:
        self.seen.append(problem)
        plan = problem.a[:, :, None] * problem.b[:, None, :]
        return TransportSolution(0.0, {}, problem, plan, ended=(Status.HEURISTIC,) * len(plan))


@dataclass(frozen=True, eq=False)
class FixedReadout(Readout):
    """Returns `values`; blind to the cost when `blind` says why."""

    name: ClassVar[str] = "fixed_readout"
    values: Any = None
    blind: str | None = None
    seen: Any = field(default_factory=list)

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Tensor:
        self.seen.append((problem, solution))
        return self.values

    def ignores_cost(self, solver: Part) -> str | None:
        self.seen.append(solver)
        return self.blind


@dataclass(frozen=True, eq=False)
class AddStep(Step):
    """Keeps the next `more` dropped tokens too; says so in `count`, or in the selection where `tells`."""

    name: ClassVar[str] = "add_step"
    more: int = 1
    tells: bool = False
    reads: tuple[str, ...] = ("features",)
    seen: Any = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.reads)

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        self.seen.append((selection, signals))
        dropped = ~selection.keep & signals.mask
        keep = selection.keep | (dropped & (dropped.cumsum(1) <= self.more))
        return replace(
            selection, keep=keep, **({"counts": tuple(keep.sum(1).tolist())} if self.tells else {})
        )

    def count(self, kept: int, tokens: int) -> int:
        return -1 if self.tells else min(tokens, kept + self.more)


def stage(problem: ProblemSpec, **more: Any) -> StageSpec:
    """A stage at the encoder's output that keeps half, solved by a spy."""
    transport = problem.kind == "transport"
    given = {
        "insertion": PostEncoder(),
        "budget": Budget(),
        "rule": None,
        "solver": SpyTransport() if transport else SpySolver(),
        "readout": None,
        **more,
    }
    return StageSpec(problem=problem, **given)


def top_k(values: Tensor) -> ProblemSpec:
    return ProblemSpec("top_k", scores=(scored(values),))
