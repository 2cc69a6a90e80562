"""Spend one budget over the pictures, crops or frames of a sample by a single price."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import BudgetRule, Step, param
from pruneopt.parts._ledger import ledger
from pruneopt.problems.allotment import Allotment, Shares
from pruneopt.problems.kinds import all_kinds, find_kind
from pruneopt.problems.solution import SubsetSolution
from pruneopt.signals import Signals
from pruneopt.tensors import first_true

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec

MATES = "one price over the batch: how many tokens a sample keeps depends on the samples beside it"


@dataclass(frozen=True)
class OnePrice(BudgetRule):
    """Every part takes tokens while they add at least the price that spends the budget of all parts.

    The budget is what the plain counts add up to, over the parts of a `sample` or, with `over: batch`, over
    everything that is selected at once; then results depend on batch mates, and a diagnostic says so.  The
    solver of the stage runs once, up to the most that a part may get; what each of its tokens adds in its
    order decides how many of them stay.  So the kind must know its gains and the solver must be nested.
    Every part keeps `floor` tokens (all of them if it has fewer, and its protected ones) and at most a share
    of `ceiling` of its own.  See `Shares.spend` for ties.

    The evidence `budget.rule` is an `Allotment`: price, gains, counts, and a bound over all splits.
    """

    name: ClassVar[str] = "one_price"
    source: ClassVar[str] = "Everett 1963 (generalized Lagrange multipliers); Fox 1966 (marginal analysis)"
    over: str = param("sample", choices=("sample", "batch"), doc="whose parts share one budget")
    floor: int = param(1, low=1, doc="tokens that every part keeps")
    ceiling: float = param(1.0, above=0, high=1, doc="share of its tokens that a part keeps at most")

    @property
    def all_tags(self) -> frozenset[str]:
        return super().all_tags | ({"across_batch"} if self.over == "batch" else frozenset())

    def misfit(self, stage: StageSpec) -> str | None:
        kind, solver, budget = find_kind(stage.stated.kind), stage.chooser, stage.budget
        if not kind.offers("gains"):
            known = ", ".join(k.name for k in all_kinds() if k.offers("gains"))
            return (
                f"what a token adds to {kind.name} may be more than what those before it added, so no price "
                f"parts them; problem.kind can be {known}"
            )
        if "nested" not in solver.tags:
            return (
                f"solver {solver.name} may choose other tokens for another count, so nothing says what one "
                f"more token adds; use one that is nested, such as {kind.greedy['kind']}"
            )
        if self.over == "sample" and budget.scope == "sample":
            return (
                "with budget.scope=sample a sample is one problem, and nothing is left to share; set "
                "budget.scope=group, or budget.rule.over=batch"
            )
        if budget.keep <= 1 and budget.keep > self.ceiling:
            return (
                f"budget.keep is {budget.keep} and budget.rule.ceiling {self.ceiling}, so the parts may not "
                "keep what the budget asks for; raise the ceiling"
            )
        protect = stage.stated.protect
        if protect is not None and protect.share is not None:
            return "problem.protect.share is of counts that the price decides; give problem.protect.count"
        adds = [step.name for step in stage.steps if type(step).count is not Step.count]
        if budget.total and adds:
            return (
                f"with budget.total the counts depend on what {', '.join(adds)} makes of them, part by part; "
                "set budget.total=false, so that those tokens come on top"
            )
        return None

    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]:
        """The most that a part may get, which the solver is asked for."""
        tokens = signals.mask.sum(1)
        low = tokens.clamp_max(self.floor)
        high = (tokens.double() * self.ceiling + 1e-9).long().maximum(low)
        shares = self._shares(signals.sample, k, low=low, high=high)
        short, over = shares.sums(high) < shares.total, shares.sums(low) > shares.total
        if (short | over).any():
            i = first_true(short | over)
            least, most, total = (int(x[i]) for x in (shares.sums(low), shares.sums(high), shares.total))
            cure = "raise budget.rule.ceiling" if bool(short[i]) else "lower budget.rule.floor"
            raise ProblemError(
                f"one_price has {total} tokens for parts that must get {least} and may get {most}; {cure}, "
                "or change budget.keep"
            )
        room = (shares.total - shares.sums(low))[shares.pool] + low
        return high.minimum(room)

    def settle(
        self, answer: SubsetSolution, k: Int[Tensor, " B"], *, sample: Int[Tensor, " B"]
    ) -> SubsetSolution:
        problem, order = answer.problem, answer.order
        assert order is not None
        low = problem.real.sum(1).clamp_max(self.floor)
        if problem.protected is not None:
            low = low.maximum((problem.protected & problem.real).sum(1))
        shares = self._shares(sample, k, low=low, high=problem.k)
        many = shares.sums(low) > shares.total
        if many.any():
            i = first_true(many)
            raise ProblemError(
                f"one_price has {int(shares.total[i])} tokens, and floors and protected tokens are "
                f"{int(shares.sums(low)[i])}; protect fewer, lower budget.rule.floor, or keep more"
            )
        gains = problem.rules.gains(problem, order)
        terms = [t for t in (problem.unary, problem.pairwise, problem.anchors) if t is not None]
        # compared in the precision of the terms, as solvers do: equal parts stay equal however sums round
        counts, price = shares.spend(gains.to(terms[0].dtype))
        settled, book = cut_back(answer, counts), ledger()
        book.solved.append((self, Allotment(answer.seconds, {}, settled, shares, gains, price, self.name)))
        if self.over == "batch":
            book.notes.append(MATES)
        return settled

    def _shares(self, sample: Tensor, k: Tensor, *, low: Tensor, high: Tensor) -> Shares:
        pool = torch.zeros_like(sample) if self.over == "batch" else sample
        total = torch.zeros(int(pool.max()) + 1, dtype=k.dtype, device=k.device).index_add(0, pool, k)
        return Shares(pool, total, low, high)


def cut_back(answer: SubsetSolution, counts: Tensor) -> SubsetSolution:
    """The answer of a nested solver for fewer tokens: the first `counts` `[B]` of its order."""
    order = answer.order
    assert order is not None
    width = order.shape[1]
    order = order.masked_fill(torch.arange(width, device=order.device) >= counts[:, None], -1)
    spare = torch.zeros(len(order), answer.keep.shape[1] + 1, dtype=torch.bool, device=order.device)
    keep = spare.scatter(1, order.masked_fill(order < 0, answer.keep.shape[1]), True)[:, :-1]
    problem = replace(answer.problem, k=counts, counts=tuple(counts.tolist()))
    return replace(answer, problem=problem, keep=keep, order=order[:, : problem.most], proved_bound=None)
