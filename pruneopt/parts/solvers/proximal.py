"""Transport without entropic bias, by proximal steps.

Problem: `min <P, C>` over plans with marginals `a` and `b`.
Update: `P <- argmin <P, C> + beta KL(P | P_old)`, by a few Sinkhorn rounds on `P_old exp(-C / beta)`.
Source: Xie, Wang, Wang, Zha 2020 (IPOT), Algorithm 2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._scaling import CHECK, products, rows
from pruneopt.problems.certificate import certify
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

_TINY = 1e-300


@dataclass(frozen=True)
class Proximal(TransportSolver):
    """`P <- argmin <P,C> + beta KL(P | P_old)`, `inner` Sinkhorn rounds a step: converges to the optimum.

    The kernel of a step is the old plan times `exp(-C / beta)`; POT 0.9.7's batch version divides by the old
    plan instead and returns the independent coupling.  Scalings are carried from step to step as in the
    paper.  After k steps the plan is the entropic one at `beta / k` up to unfinished inner rounds, and the
    summed potentials over k certify it.  Unequal marginals want `inner` of 5 or more.

    `tolerance` stops a problem when its certified gap falls below that share of its cost range (looked at
    every 10th step).  float64, source side last, any device; no gradients.

    Source: Xie, Wang, Wang, Zha 2020 (IPOT), Algorithm 2.
    """

    name: ClassVar[str] = "proximal"
    source: ClassVar[str] = "Xie et al., UAI 2020 (IPOT), Algorithm 2"
    last: ClassVar[str] = "source"
    beta: float = param(0.05, above=0, doc="step size as a share of each problem's cost range")
    rounds: int = param(200, low=1, doc="proximal steps, at most")
    inner: int = param(5, low=1, doc="Sinkhorn rounds in a step")
    tolerance: float | None = param(None, low=0, doc="certified gap over cost range at which to stop")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Never raises for non-convergence: `CONVERGED`, `MAX_ROUNDS`, or `ROUNDS_DONE` without tolerance."""
        begin = time.perf_counter()
        here = problem.detached()
        low, high = (x.double() for x in here.span())
        beta = self.beta * torch.where(high > low, high - low, torch.ones_like(low))
        state = _State.begin(here, beta)
        live = torch.arange(len(beta), device=beta.device)
        plan, f, g = state.plan.clone(), torch.zeros_like(state.f), torch.zeros_like(state.g)
        rounds = torch.zeros_like(live)
        met = torch.zeros_like(live, dtype=torch.bool)
        floor, done = low, 0
        while done < self.rounds and live.numel():
            kernel = (here.cost.double() - floor[:, None, None]).clamp_min_(0)
            kernel = kernel.div_(-state.beta[:, None, None]).exp_()
            for _ in range(min(CHECK, self.rounds - done) if self.tolerance is not None else self.rounds):
                state.step(here, kernel, inner=self.inner)
                done += 1
            plan[live], rounds[live] = state.plan, done
            f[live], g[live] = state.f / done + floor[:, None], state.g / done
            if self.tolerance is None:
                break
            enough = certify(here, state.plan, g=g[live]).gap < self.tolerance * state.beta / self.beta
            if bool(enough.any()):
                met[live[enough]] = True
                stay = (~enough).nonzero().squeeze(1)
                here, state, live, floor = rows(here, stay), state.keep(stay), live[stay], floor[stay]
        if self.tolerance is None:
            ended = (Status.ROUNDS_DONE,) * len(beta)
        else:
            ended = tuple(Status.CONVERGED if x else Status.MAX_ROUNDS for x in met.tolist())
        return TransportSolution(
            time.perf_counter() - begin,
            {"epsilon": beta / rounds.clamp_min(1)},
            problem=problem,
            plan=plan,
            f=f,
            g=g,
            rounds=rounds,
            ended=ended,
            order=self.last,
            solver=self.name,
        )


@dataclass
class _State:
    """`plan = exp((f_i + g_j - k (C_ij - floor)) / beta)` after k steps; `u` is carried between steps."""

    plan: Tensor
    f: Tensor
    g: Tensor
    u: Tensor
    beta: Tensor

    @classmethod
    def begin(cls, problem: TransportProblem, beta: Tensor) -> _State:
        a, b = problem.a.double(), problem.b.double()
        f, g = beta[:, None] * a.log(), beta[:, None] * b.log()
        return cls(a[:, :, None] * b[:, None, :], f, g, (a > 0).double(), beta)

    def step(self, problem: TransportProblem, kernel: Tensor, *, inner: int) -> None:
        self.plan = self.plan * kernel
        a, b = problem.a.double(), problem.b.double()
        right, left = products(self.plan)
        for _ in range(inner):
            v = b / left(self.u).clamp_min(_TINY)
            self.u = a / right(v).clamp_min(_TINY)
        self.plan.mul_(self.u[:, :, None]).mul_(v[:, None, :])
        self.f = self.f + self.beta[:, None] * self.u.log()
        self.g = self.g + self.beta[:, None] * v.log()

    def keep(self, index: Tensor) -> _State:
        return _State(self.plan[index], self.f[index], self.g[index], self.u[index], self.beta[index])
