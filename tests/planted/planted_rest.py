"""Correct readouts, steps and budget rules, and bad ones that each carry one bug."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.errors import ProblemError
from pruneopt.parts import BudgetRule, Readout, Step


@dataclass(frozen=True)
class GoodReadout(Readout):
    """Minus the centred source potential, `[B,N]`; higher is kept."""

    name: ClassVar[str] = "good_readout"

    def potential(self, solution):
        if solution.f is None:
            raise ProblemError("needs a solver with potentials")
        return solution.f.double().masked_fill(~solution.f.isfinite(), 0)

    def __call__(self, problem, solution):
        f, a = self.potential(solution), problem.a.double()
        return ((a * f).sum(1, keepdim=True) - f).masked_fill(a == 0, 0)

    def ignores_cost(self, solver):
        return "one_sided has no source potential" if solver.name == "one_sided" else None


@dataclass(frozen=True)
class HalfImportance(GoodReadout):
    """Answers in half precision."""

    name = "half_importance"

    def __call__(self, problem, solution):
        return super().__call__(problem, solution).half()


@dataclass(frozen=True)
class UndeclaredBlindness(Readout):
    """Row sums of the plan, without saying when they cannot see the cost."""

    name = "undeclared_blindness"

    def __call__(self, problem, solution):
        return solution.plan.sum(2)


@dataclass(frozen=True)
class ReversedReadout(GoodReadout):
    """Plus the potential: dear tokens rank high."""

    name = "reversed_readout"

    def __call__(self, problem, solution):
        return -super().__call__(problem, solution)


@dataclass(frozen=True)
class IndexedReadout(GoodReadout):
    """Breaks ties by adding the index."""

    name = "indexed_readout"

    def __call__(self, problem, solution):
        out = super().__call__(problem, solution)
        return out + 0.1 * torch.arange(out.shape[1])


@dataclass(frozen=True)
class BatchReadout(GoodReadout):
    """Divides by the largest value of the batch."""

    name = "batch_readout"

    def __call__(self, problem, solution):
        out = super().__call__(problem, solution)
        return out / out.abs().max().clamp_min(1e-12)


@dataclass(frozen=True)
class MutatesPotential(GoodReadout):
    """Centres the caller's potential in place."""

    name = "mutates_potential"

    def __call__(self, problem, solution):
        out = super().__call__(problem, solution)
        solution.f.sub_(solution.f.mean(1, keepdim=True))
        return out


@dataclass(frozen=True)
class NoisyReadout(GoodReadout):
    """Breaks ties with the global generator."""

    name = "noisy_readout"

    def __call__(self, problem, solution):
        out = super().__call__(problem, solution)
        return out + 1e-9 * torch.rand(out.shape)


@dataclass(frozen=True)
class NamelessRefusal(GoodReadout):
    """Fails with a TypeError when there are no potentials."""

    name = "nameless_refusal"

    def potential(self, solution):
        f = 0 - solution.f.double()
        return (-f).masked_fill(~f.isfinite(), 0)


@dataclass(frozen=True)
class GoodStep(Step):
    """Adds the dropped token with the largest norm, and merges nothing."""

    name: ClassVar[str] = "good_step"

    @property
    def needs(self):
        return frozenset({"features"})

    def candidates(self, selection, signals):
        return ~selection.keep & signals.mask

    def norms(self, signals):
        return signals["features"].float().norm(dim=2)

    def added(self, selection, signals):
        dropped = self.candidates(selection, signals)
        best = self.norms(signals).masked_fill(~dropped, -1).argmax(1, keepdim=True)
        return torch.zeros_like(dropped).scatter(1, best, True) & dropped

    def __call__(self, selection, signals):
        return replace(selection, keep=selection.keep | self.added(selection, signals))

    def count(self, kept, tokens):
        return min(kept + 1, tokens)


@dataclass(frozen=True)
class KeepsPadding(GoodStep):
    """Adds padding too."""

    name = "keeps_padding"

    def __call__(self, selection, signals):
        out = super().__call__(selection, signals)
        return replace(out, keep=out.keep | ~signals.mask)


@dataclass(frozen=True)
class MergesUnsaid(GoodStep):
    """Merges without saying that it asks for that, so no insertion can refuse it in time."""

    name = "merges_unsaid"

    def __call__(self, selection, signals):
        out = super().__call__(selection, signals)
        return replace(out, merge=torch.eye(signals.tokens).repeat(signals.batch, 1, 1))


@dataclass(frozen=True)
class WrongCount(GoodStep):
    """Forgets to override `count`."""

    name = "wrong_count"

    def count(self, kept, tokens):
        return kept


@dataclass(frozen=True)
class BatchStep(GoodStep):
    """Adds the tokens above the mean norm of the batch."""

    name = "batch_step"

    def __call__(self, selection, signals):
        norms = self.norms(signals) * signals.mask
        more = (norms > norms.sum() / signals.mask.sum()) & signals.mask
        return replace(selection, keep=selection.keep | more, counts=None)


@dataclass(frozen=True)
class MutatesSelection(GoodStep):
    """Writes into the given selection."""

    name = "mutates_selection"

    def __call__(self, selection, signals):
        selection.keep.logical_or_(self.added(selection, signals))
        return replace(selection, keep=selection.keep.clone())


@dataclass(frozen=True)
class NoisyStep(GoodStep):
    """Adds a token drawn from the global generator."""

    name = "noisy_step"

    def norms(self, signals):
        return torch.rand(signals.mask.shape)


@dataclass(frozen=True)
class IndexStep(GoodStep):
    """Adds the first dropped token, without the tag that says so."""

    name = "index_step"

    def norms(self, signals):
        return -torch.arange(signals.tokens).float().expand(signals.batch, -1) + signals.tokens


@dataclass(frozen=True)
class FirstSlots(GoodStep):
    """Looks for its candidates in the first slots, wherever padding stands."""

    name = "first_slots"

    def candidates(self, selection, signals):
        first = torch.arange(signals.tokens) < signals.mask.sum(1, keepdim=True)
        return super().candidates(selection, signals) & first


@dataclass(frozen=True)
class GoodRule(BudgetRule):
    """Half of the asked count, at least one."""

    name: ClassVar[str] = "good_rule"

    def __call__(self, signals, k, *, importance):
        return (k // 2).clamp_min(1)


@dataclass(frozen=True)
class KeepsNothing(GoodRule):
    """May ask for zero tokens."""

    name = "keeps_nothing"

    def __call__(self, signals, k, *, importance):
        return k // 2


@dataclass(frozen=True)
class BatchRule(GoodRule):
    """Gives every sample the largest count of the batch that it can have."""

    name = "batch_rule"

    def __call__(self, signals, k, *, importance):
        return k.amax().expand_as(k).minimum(signals.mask.sum(1))


@dataclass(frozen=True)
class MutatesCounts(GoodRule):
    """Halves the caller's counts."""

    name = "mutates_counts"

    def __call__(self, signals, k, *, importance):
        return k.floor_divide_(2).clamp_min_(1)
