"""What a solver returns, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruneopt.brief import Brief
from pruneopt.problems.certificate import Certificate, c_transform, certify, round_to_polytope  # noqa: F401
from pruneopt.problems.gradients import envelope, refuse_gradient, refuses
from pruneopt.problems.streamed import certify_by_rows
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored

if TYPE_CHECKING:
    from pruneopt.problems.relaxed import Relaxation


class Status(Enum):
    """How a solve ended; the value says what to try next."""

    OPTIMAL = "An optimum was found and proved."
    CONVERGED = "The tolerance was met; lower it or epsilon, with annealing, to come closer to the optimum."
    ROUNDS_DONE = "The asked rounds were run without a convergence test; read the gap, or set `tolerance`."
    MAX_ROUNDS = "Not converged: raise `rounds`, raise `epsilon`, or turn on annealing."
    CLOSED_FORM = "A closed form of a relaxed problem; the gap says what the relaxation costs."
    HEURISTIC = "A heuristic answer; read the gap, or use an exact solver to close it."
    TIME_LIMIT = "Stopped by the time limit; raise `time_limit` or accept the reported gap."
    INFEASIBLE = "No choice meets the constraints; relax the budget, the threshold or the quotas."
    NON_FINITE = "The result is not finite; raise `epsilon`, check the cost for huge values, or use float64."
    FAILED = "The library behind this solver reported failure; see `stats` for its own words."
    UNPROVED = "The solver said optimal, but its own bound is farther away than its tolerance; read the gap."
    INVALID = "The value and its bound contradict each other, so one of the two is wrong; use neither."

    @property
    def ok(self) -> bool:
        """False when the result must not be used."""
        return self not in (Status.INFEASIBLE, Status.NON_FINITE, Status.FAILED, Status.INVALID)

    @property
    def proved(self) -> bool:
        """True only for a proven optimum; for transport that is one whose gap the certificate confirmed."""
        return self is Status.OPTIMAL


def settled(ended: Status, gap: float, *, slack: float) -> Status:
    """What a solver's word is worth beside the gap of its answer: the one place where a claim may stand.

    `gap` is the distance between value and bound, negative where they contradict each other; `slack` is what
    the solver's tolerance allows, in the same unit.  OPTIMAL stands only within the slack, a contradiction
    beyond it is INVALID whatever the solver said.
    """
    if gap < -slack:
        return Status.INVALID
    return Status.UNPROVED if ended is Status.OPTIMAL and not gap <= slack else ended


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Brief):
    """Common part of every result: how it ended, what it cost, what else the solver reported.

    Parameters
    ----------
    seconds
        Host seconds of the solve.
    stats
        What the solver reported beside its answer.
    """

    seconds: float
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class TransportSolution(Solution):
    """A transport plan with potentials; everything else is derived from them when first read.

    Gradients, where the problem asks for them: a plan that autograd followed differentiates, and so does all
    that is derived from it.  A plan that it did not follow refuses by name, and so do its potentials; its
    `value` has the gradient of the optimum (plan and potentials, by the envelope theorem) where the
    certificate proves one, and refuses elsewhere.

    Parameters
    ----------
    problem
        What was solved.
    plan
        Mass that goes from each source to each target; `Unstored` where the solver has it in factors.
    f, g
        Potentials in cost units, or None where the method has none.
    rounds
        Rounds of each problem, where the method has some.
    ended
        One Status per problem, as the solver saw it; `status` is what holds.
    order
        Which side was updated last: `source`, `target`, `both` (exact solvers) or `neither`.
    solver
        Name of the solver.
    relaxation
        The problem that was solved in place of the balanced one; `value`, `lower_bound` and `gap` are then
        about it.  None is the balanced one.
    """

    problem: TransportProblem = None  # type: ignore[assignment]
    plan: Float[Tensor, "B N M"] = None  # type: ignore[assignment]
    f: Float[Tensor, "B N"] | None = None
    g: Float[Tensor, "B M"] | None = None
    rounds: Int[Tensor, " B"] | None = None
    ended: tuple[Status, ...] = ()
    order: str = "neither"
    solver: str = ""
    relaxation: Relaxation | None = None

    def __post_init__(self) -> None:
        inputs = self.problem.inputs
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
            return
        for name in ("plan", "f", "g"):
            tensor = getattr(self, name)
            if tensor is not None and not tensor.requires_grad:
                object.__setattr__(self, name, refuse_gradient(tensor, inputs, words=self._refusal(name)))

    def _refusal(self, name: str) -> str:
        return (
            f"{self.solver or 'this solver'} has no gradient of `{name}`; sinkhorn (with omega=1) and "
            "one_sided differentiate in full, and `value` of a proved optimum (exact, emd, lp) in the cost "
            "and the marginals. Or take the result out of autograd with detach()"
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.plan.dtype

    @cached_property
    def certificate(self) -> Certificate:
        with torch.set_grad_enabled(self.plan.requires_grad):  # whoever reads it first, and wherever
            if self.relaxation is None and (
                isinstance(self.plan, Unstored) or isinstance(self.problem.cost, Unstored)
            ):
                return certify_by_rows(self.problem, self.plan, f=self.f, g=self.g)
            judge = certify if self.relaxation is None else self.relaxation.certify
            if not refuses(self.plan):
                return judge(self.problem, self.plan, g=self.g)
            found = judge(
                self.problem.detached(), self.plan.detach(), g=None if self.g is None else self.g.detach()
            )
            optimum = (self.plan.detach().double(), found.f, found.g)
            inputs = self.problem.inputs
            balanced = self.relaxation is None  # the theorem is stated for its optimum only
            value = envelope(
                found.value,
                inputs,
                optimum=optimum,
                proved=found.proved & balanced,
                words=self._refusal("value"),
            )
            others = {
                name: refuse_gradient(getattr(found, name), inputs, words=self._refusal(name))
                for name in ("lower_bound", "gap", "row_error", "col_error", "f", "g")
            }
            return replace(found, value=value, **others)

    @property
    def value(self) -> Tensor:
        """`[B]` cost of the plan rounded to the polytope: an upper bound of the optimum."""
        return self.certificate.value

    @property
    def lower_bound(self) -> Tensor:
        """`[B]` dual-feasible value: a lower bound of the optimum."""
        return self.certificate.lower_bound

    @property
    def gap(self) -> Tensor:
        """`[B]` value minus lower bound, in cost units."""
        return self.certificate.gap

    @property
    def row_error(self) -> Tensor:
        return self.certificate.row_error

    @property
    def col_error(self) -> Tensor:
        return self.certificate.col_error

    @cached_property
    def status(self) -> tuple[Status, ...]:
        """One per problem.

        A non-finite plan is never a success, nor is a potential unless it is minus infinity at an atom
        without mass; `OPTIMAL` is only said where the certificate proves it.
        """
        plan = self.plan
        parts = plan.rows.inputs() if isinstance(plan, Unstored) else (plan,)
        bad = torch.zeros(len(plan), dtype=torch.bool, device=plan.device)
        for tensor in parts:
            bad |= ~tensor.isfinite().flatten(1).all(1)
        for potential, mass in ((self.f, self.problem.a), (self.g, self.problem.b)):
            if potential is not None:
                absent = (potential == -math.inf) & (mass == 0)
                bad |= ~(potential.isfinite() | absent).all(1)
        claims = Status.OPTIMAL in self.ended
        proved = self.certificate.proved.tolist() if claims else [False] * len(self.ended)
        return tuple(
            Status.NON_FINITE if b else settled(e, 0.0 if p else math.inf, slack=0.0)
            for b, e, p in zip(bad.tolist(), self.ended, proved, strict=True)
        )


@dataclass(frozen=True, eq=False, repr=False)
class SubsetSolution(Solution):
    """A chosen subset per sample; value and bound are derived from it when first read.

    Parameters
    ----------
    keep: `[B,N]` bool.
    order: `[B,K]` int64, the order in which tokens were chosen, -1 after the last; None if there is none.
    ended: what the solver says, one Status per sample; `status` is what stands of it.
    proved_bound: `[B]` bound of the optimum that the solver itself has proved, or None.
    tolerance: the gap within which OPTIMAL stands, as a share of the size of the objective's terms (the
        `magnitude` of its problem).
    """

    problem: SubsetProblem = None  # type: ignore[assignment]
    keep: Tensor = None  # type: ignore[assignment]
    order: Tensor | None = None
    ended: tuple[Status, ...] = ()
    solver: str = ""
    proved_bound: Tensor | None = None
    tolerance: float = 1e-9

    @cached_property
    def value(self) -> Tensor:
        """`[B]` float64 objective (larger is better); -inf where a constraint is broken."""
        return self.problem.value(self.keep)

    @cached_property
    def _bound(self) -> tuple[Tensor | None, str]:
        if self.proved_bound is not None:
            return self.proved_bound, ""
        return self.problem.bound(self.keep)

    @property
    def upper_bound(self) -> Tensor | None:
        """`[B]` float64: no choice is worth more; None when there is no bound (`no_bound` says why)."""
        return self._bound[0]

    @property
    def no_bound(self) -> str:
        """Why there is no bound; empty when there is one."""
        return self._bound[1]

    @property
    def gap(self) -> Tensor | None:
        """`[B]` upper bound minus value, or None when there is no bound; below zero only by rounding."""
        if self.upper_bound is None:
            return None
        same = self.upper_bound == self.value  # also where both are infinite
        return torch.where(same, 0.0, self.upper_bound - self.value)

    @cached_property
    def status(self) -> tuple[Status, ...]:
        """One per sample; a NaN objective is never a success, and a claim needs a bound that supports it.

        Reads the bound only where the solver claims an optimum or has proved a bound itself: that of a
        heuristic may cost more than its answer (`gap` shows it).
        """
        ended = tuple(
            Status.NON_FINITE if bad else e
            for bad, e in zip(self.value.isnan().tolist(), self.ended, strict=True)
        )
        if self.proved_bound is None and Status.OPTIMAL not in ended:
            return ended
        gap = torch.full_like(self.value, math.inf) if self.gap is None else self.gap
        slack = self.tolerance * self.problem.magnitude(self.keep)
        return tuple(
            settled(e, g, slack=s) if e.ok else e
            for e, g, s in zip(ended, gap.tolist(), slack.tolist(), strict=True)
        )
