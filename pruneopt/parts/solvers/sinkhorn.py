"""Entropic transport by alternating scaling.

Problem: `min <P, C> - eps H(P)` over plans with marginals `a` and `b`; the optimum is
`P_ij = exp((f_i + g_j - C_ij) / eps)`.  Update: `g_j = eps log b_j - eps log sum_i exp((f_i - C_ij) / eps)`,
then the same for `f` with rows and columns exchanged.
Sources: Cuturi 2013; Schmitzer 2019; Thibault et al. 2021 (`_scaling.py` says how it is made fast and safe).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers import _scaling as scaling
from pruneopt.parts.solvers import _unrolled as unrolled
from pruneopt.parts.solvers._common import transposed
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.tensors import first_true

Start = tuple[Tensor, Tensor]
FEW = 5  # rounds up to which the log domain is used on a GPU rather than waiting for it


@dataclass(frozen=True)
class Sinkhorn(TransportSolver):
    """`min <P,C> - eps H(P)` over couplings of `a` and `b`, by matrix scaling in the given order.

    A round updates the first-named side, then the other.  `target_then_source` therefore ends with rows that
    sum to `a` exactly, whatever the cost is, and `source_then_target` with exact columns: a readout that
    only sums over the exact side cannot see the cost.  Without `tolerance` all rounds are run and nothing is
    claimed (`ROUNDS_DONE`); with it, a problem whose other side is violated by less than `tolerance` in L1
    stops alone, at the second round at the earliest, as `CONVERGED`.

    float32 unless the cost is float64; potentials are float64 in cost units.  Annealing runs `anneal_rounds`
    rounds at each epsilon from `anneal_start` (same scale as `epsilon`) down by `anneal_decay`, then `rounds`
    at `epsilon`; use it below 0.02 of the range.  Over-relaxation (`omega` above 1) ends every look at the
    device with a plain round and falls back to plain rounds for a problem whose dual value decreased.

    Gradients: where cost, marginals or `start` ask for one, the rounds are repeated in the log domain for
    autograd to follow; plan, potentials, `value` and `lower_bound` then have the exact derivative of the
    rounds that were run, the cost range behind a relative epsilon included.  Over-relaxed rounds refuse.

    Sources: Cuturi 2013; Schmitzer 2019; Thibault et al. 2021.
    """

    name: ClassVar[str] = "sinkhorn"
    warm: ClassVar[bool] = True
    source: ClassVar[str] = "Cuturi, NeurIPS 2013; stabilisation: Schmitzer, SISC 2019"
    epsilon: float = param(0.05, above=0, doc="entropic regularisation")
    epsilon_scale: str = param(
        "range",
        choices=("range", "absolute"),
        doc="epsilon as a share of the cost range, or as is",
    )
    rounds: int = param(100, low=1, doc="rounds at the final epsilon, at most")
    tolerance: float | None = param(None, low=0, doc="L1 marginal violation at which a problem stops")
    order: str = param(
        "target_then_source",
        choices=("target_then_source", "source_then_target"),
        doc="update order within a round; the side named last is exact",
    )
    anneal_start: float | None = param(None, above=0, doc="first epsilon of the annealing")
    anneal_decay: float = param(0.5, above=0, high=0.95, doc="factor between two epsilons")
    anneal_rounds: int = param(10, low=1, doc="rounds at each annealed epsilon")
    omega: float = param(1.0, low=1, high=1.95, doc="over-relaxation; 1 is plain")

    @property
    def last(self) -> str:
        """The side that is updated last, hence exact: `"source"` or `"target"`."""
        return "source" if self.order == "target_then_source" else "target"

    def solve(self, problem: TransportProblem, start: Start | None = None) -> TransportSolution:
        """Solve every problem of the batch; `start` holds potentials `f [B,N]`, `g [B,M]` to begin from.

        Raises ProblemError when `start` has the wrong shape or is not finite where there is mass.
        """
        begin = time.perf_counter()
        flip = self.last == "target"
        low, high = problem.span()
        width = torch.where(high > low, high - low, torch.ones_like(low)).double()
        eps = width * self.epsilon if self.epsilon_scale == "range" else torch.full_like(width, self.epsilon)
        # Where a gradient is asked for, the rounds below run first and are then repeated for autograd.
        if self.omega == 1 and torch.is_grad_enabled() and _traced(problem, start):
            return self._followed(problem, start, eps=eps, begin=begin)
        problem_in, problem = problem, problem.detached()
        low, high, width, eps = low.detach(), high.detach(), width.detach(), eps.detach()
        oriented = transposed(problem) if flip else problem
        stages = self._stages()
        stats: dict[str, object] = {"epsilon": eps}
        f: Tensor
        g: Tensor
        # One kernel for all rounds where it lasts; else rounds that watch their scalings, annealed or not.
        if start is None and not stages and self._plain(problem, width, eps=eps):
            f, g, plan = scaling.plain(oriented, eps, span=(low, high), rounds=self.rounds)
            rounds = torch.full(eps.shape, self.rounds, dtype=torch.int64, device=eps.device)
            ended = (Status.ROUNDS_DONE,) * len(eps)
        else:
            state = self._begin(oriented, start, flip=flip)
            run: dict[str, Any] = {"state": state, "omega": self.omega}
            for i, stage in enumerate(stages):
                first = start is None and i == 0
                few = self.anneal_rounds
                scaling.iterate(oriented, eps * stage, rounds=few, tolerance=None, first=first, **run)
            if self.tolerance is None and self.rounds <= FEW and problem.cost.is_cuda:
                scaling.iterate_blindly(oriented, eps, rounds=self.rounds, **run)
                plan = scaling.gibbs(oriented, state.f, g=state.g, eps=eps)
            else:
                first = start is None and not stages
                run |= {"rounds": self.rounds, "tolerance": self.tolerance, "first": first}
                plan = scaling.iterate(oriented, eps, **run)
            f, g, rounds = state.f, state.g, state.rounds
            ended = self._ended(state)
            stats |= {"kernel_builds": state.rebuilds, "log_rounds": state.log_rounds}
        if flip:
            f, g, plan = g, f, plan.transpose(1, 2)
        return TransportSolution(
            time.perf_counter() - begin,
            stats,
            problem=problem_in,
            plan=plan,
            f=f,
            g=g,
            rounds=rounds,
            ended=ended,
            order=self.last,
            solver=self.name,
        )

    def _followed(
        self, problem: TransportProblem, start: Start | None, *, eps: Tensor, begin: float
    ) -> TransportSolution:
        """The fast rounds, then the same once more where autograd sees them."""
        with torch.no_grad():
            fast = self.solve(problem, start)
        assert fast.rounds is not None
        flip = self.last == "target"
        oriented = transposed(problem) if flip else problem
        first = torch.zeros_like(oriented.a).double() if start is None else start[int(flip)].to(eps)
        few = self.anneal_rounds
        stages = [unrolled.Stage(eps * x, few, torch.full_like(fast.rounds, few)) for x in self._stages()]
        taken = fast.rounds - few * len(stages)
        most = self.rounds if self.tolerance is None else int(taken.max())
        stages.append(unrolled.Stage(eps, most, taken))
        f, g, plan = unrolled.repeat(oriented, first, stages=stages)
        if flip:
            f, g, plan = g, f, plan.transpose(1, 2)
        return replace(
            fast,
            problem=problem,
            plan=plan,
            f=f,
            g=g,
            stats={**fast.stats, "epsilon": eps},
            seconds=time.perf_counter() - begin,
        )

    def _stages(self) -> list[float]:
        """Annealed epsilons as multiples of the final one, falling."""
        stages: list[float] = []
        scale = 1.0 if self.anneal_start is None else self.anneal_start / self.epsilon
        while scale > 1.0 + 1e-9:
            stages.append(scale)
            scale *= self.anneal_decay
        return stages

    def _plain(self, problem: TransportProblem, width: Tensor, *, eps: Tensor) -> bool:
        """Whether one kernel lasts for all rounds; on a GPU only if that is known without asking it."""
        if self.tolerance is not None or self.omega != 1:
            return False
        limit = scaling.plain_limit(problem.cost.dtype)
        if self.epsilon_scale == "range":
            return self.epsilon * limit >= 1
        return not problem.cost.is_cuda and bool((width <= limit * eps).all())

    @staticmethod
    def _begin(problem: TransportProblem, start: Start | None, *, flip: bool) -> scaling.Potentials:
        a, b = problem.a.double(), problem.b.double()
        count = torch.zeros(len(a), dtype=torch.int64, device=a.device)
        error = torch.full((len(a),), torch.inf, dtype=torch.float64, device=a.device)
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        if start is not None:
            f, g = (start[1], start[0]) if flip else start
            for name, x, mass in (("source", f, a), ("target", g, b)):
                side = {"source": "target", "target": "source"}[name] if flip else name
                if x.shape != mass.shape:
                    raise ProblemError(
                        f"start: the {side} potential must be {list(mass.shape)}, got {list(x.shape)}"
                    )
                bad = ~(x.to(a.device).isfinite() | (mass == 0)).all(1)
                if bad.any():
                    raise ProblemError(
                        f"start: the {side} potential is not finite in problem {first_true(bad)}"
                    )
            f, g = f.to(a).clone(), g.to(b).clone()
        empty = torch.full((), -torch.inf, dtype=torch.float64, device=a.device)
        return scaling.Potentials(torch.where(a > 0, f, empty), torch.where(b > 0, g, empty), count, error)

    def _ended(self, state: scaling.Potentials) -> tuple[Status, ...]:
        if self.tolerance is None:
            return (Status.ROUNDS_DONE,) * len(state.rounds)
        good = (state.error < self.tolerance) & (state.rounds > 1)
        return tuple(Status.CONVERGED if x else Status.MAX_ROUNDS for x in good.tolist())


def _traced(problem: TransportProblem, start: Start | None) -> bool:
    return any(x.requires_grad for x in (*problem.inputs, *(start or ())))
