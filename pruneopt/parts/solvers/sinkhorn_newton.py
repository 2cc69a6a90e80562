"""Entropic transport to high precision: Sinkhorn rounds, then Newton steps.

Problem: `max_g b.g + a.f(g)` with `f(g)` the exact update of the rows, whose optimum is the entropic plan.
Update: `g <- g + step H^-1 (b - columns)`, `H` the sparsified Hessian, by conjugate gradients.
Source: Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying 2024 (Sinkhorn-Newton-Sparse).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import Answer, Atoms, double, each
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

LOOSE = 1e-2  # marginal error at which an annealed epsilon is left
DECAY = 0.5


@dataclass(frozen=True)
class SinkhornNewton(TransportSolver):
    """The entropic plan to a marginal error of 1e-9 and below, where plain rounds take thousands.

    After a Sinkhorn warm-up, Newton steps on the semi-dual `b.g + a.f(g)`, in which the source side is always
    exact.  Its Hessian `(diag(P^T 1) - P^T diag(1/a) P) / eps` is used with the entries of `P` below
    `drop * a_i / M` left out, so a conjugate-gradient step costs the entries that matter; keeping the full
    diagonal makes every step an ascent direction, and a line search makes it safe.  The paper sparsifies the
    Hessian of both potentials instead.  float64 on the CPU; source side last.

    Source: Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying 2024 (Sinkhorn-Newton-Sparse).
    """

    name: ClassVar[str] = "sinkhorn_newton"
    source: ClassVar[str] = "Tang et al., ICLR 2024 (Sinkhorn-Newton-Sparse)"
    last: ClassVar[str] = "source"
    epsilon: float = param(0.05, above=0, doc="entropic regularisation")
    epsilon_scale: str = param(
        "range", choices=("range", "absolute"), doc="epsilon as a share of the cost range, or as is"
    )
    warmup: int = param(20, low=1, doc="Sinkhorn rounds before the first Newton step")
    anneal_start: float | None = param(None, above=0, doc="first epsilon of the annealing, halved from there")
    steps: int = param(50, low=1, doc="Newton steps at each epsilon, at most")
    tolerance: float = param(1e-9, low=0, doc="L1 marginal violation at which a problem stops")
    drop: float = param(1e-7, low=0, high=0.1, doc="entries below drop * a_i / M leave the Hessian")
    threads: int = param(0, low=0, doc="problems solved at the same time; 0 is one per core")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """`CONVERGED` below the tolerance, else `MAX_ROUNDS`; rounds count warm-up and Newton steps."""
        begin = time.perf_counter()
        high = double(problem.detached())
        first = self.epsilon if self.anneal_start is None else max(self.anneal_start, self.epsilon)
        warm = Sinkhorn(first, self.epsilon_scale, rounds=self.warmup).solve(high)
        assert warm.g is not None
        start, eps = warm.g.cpu().numpy(), (warm.stats["epsilon"] * (self.epsilon / first)).cpu().numpy()
        real = (high.b > 0).cpu().numpy()

        def one(atoms: Atoms) -> Answer:
            i, cost, a, b = atoms.index, atoms.cost, atoms.a, atoms.b
            last = float(eps[i]) / atoms.unit
            g, taken, scale = start[i][real[i]] / atoms.unit, 0, first / self.epsilon
            while scale > 1:
                near = self._newton(SemiDual(cost, a, b, last * scale), g, tolerance=LOOSE)
                g, taken, scale = near.at.g, taken + near.steps, scale * DECAY
            found = self._newton(SemiDual(cost, a, b, last), g, tolerance=self.tolerance)
            status = Status.CONVERGED if found.error < self.tolerance else Status.MAX_ROUNDS
            taken += found.steps
            words = {"method": self.name, "newton_steps": taken, "hessian_density": found.share}
            return Answer(found.at.plan, found.at.f, found.at.g, self.warmup + taken, status, words)

        found = each(problem, one, solver=self.name, threads=self.threads or os.cpu_count() or 1, exact=False)
        stats = {**found.stats, "epsilon": torch.from_numpy(eps).to(problem.cost.device)}
        return replace(found, stats=stats, seconds=time.perf_counter() - begin)

    def _newton(self, dual: SemiDual, g: np.ndarray, *, tolerance: float) -> Ascent:
        """Newton from `g` until the marginal error is below `tolerance`, or out of steps."""
        from scipy.sparse import csr_matrix, diags_array
        from scipy.sparse.linalg import LinearOperator, cg

        at, a, b = dual.at(g), dual.a, dual.b
        error, taken, share, n = np.inf, 0, 1.0, len(b)
        for taken in range(self.steps + 1):
            columns = at.plan.sum(0)
            slope = b - columns
            error = float(np.abs(slope).sum())
            if not error >= tolerance or taken == self.steps:
                break
            # entries that weigh nothing beside their row leave the Hessian, which is what makes it sparse
            kept = csr_matrix(np.where(at.plan * n >= self.drop * a[:, None], at.plan, 0.0))
            share = kept.nnz / at.plan.size
            across, back = diags_array(1 / a) @ kept, kept.T.tocsr()
            damped = columns * (1 + min(error, 1e-2)) + 1e-300
            hessian = LinearOperator((n, n), matvec=lambda x, A=across, B=back, c=damped: c * x - B @ (A @ x))
            move, _ = cg(hessian, slope, rtol=min(0.1, error), maxiter=10 * n, M=diags_array(1 / damped))
            at = dual.search(at, dual.eps * (move - move @ b))
        return Ascent(at, taken, error, share)


@dataclass(frozen=True)
class Point:
    """The semi-dual at `g`: the row-exact plan, its source potential and the value."""

    g: np.ndarray
    plan: np.ndarray
    f: np.ndarray
    value: float


@dataclass(frozen=True)
class Ascent:
    """Where Newton ended: after how many steps, with which marginal error and share of the Hessian."""

    at: Point
    steps: int
    error: float
    share: float


@dataclass(frozen=True)
class SemiDual:
    """One problem at one epsilon as a concave function of the target potential alone."""

    cost: np.ndarray
    a: np.ndarray
    b: np.ndarray
    eps: float

    def at(self, g: np.ndarray) -> Point:
        z = (g - self.cost) / self.eps
        top = z.max(1, keepdims=True)
        z = np.exp(z - top)
        total = z.sum(1, keepdims=True)
        f = self.eps * (np.log(self.a) - np.log(total[:, 0]) - top[:, 0])
        return Point(g, z * (self.a[:, None] / total), f, float(self.a @ f + self.b @ g))

    def search(self, here: Point, move: np.ndarray) -> Point:
        """The longest of the steps 1, 1/2, 1/4, ... with enough ascent; a Sinkhorn round if there is none.

        Near the optimum the value is flat to rounding, so a step that lowers the marginal error counts too.
        """
        columns = here.plan.sum(0)
        slope = self.b - columns
        gain, error = float(slope @ move), float(np.abs(slope).sum())
        step = 1.0
        while step > 1e-4 and gain > 0:
            new = self.at(here.g + step * move)
            flat = abs(new.value - here.value) <= 1e-12 * (1 + abs(here.value))
            better = float(np.abs(self.b - new.plan.sum(0)).sum()) < error
            if new.value >= here.value + 1e-4 * step * gain or (flat and better):
                return new
            step /= 2
        return self.at(here.g + self.eps * (np.log(self.b) - np.log(np.maximum(columns, 1e-300))))
