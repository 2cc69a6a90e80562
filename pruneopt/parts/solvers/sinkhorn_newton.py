"""Entropic transport to high precision: Sinkhorn rounds, then Newton steps."""

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
                near = self._newton(cost, a, b, g, last * scale, LOOSE)
                g, taken, scale = near[2], taken + near[3], scale * DECAY
            plan, f, g, steps, error, share = self._newton(cost, a, b, g, last, self.tolerance)
            status = Status.CONVERGED if error < self.tolerance else Status.MAX_ROUNDS
            words = {"method": self.name, "newton_steps": taken + steps, "hessian_density": share}
            return Answer(plan, f, g, self.warmup + taken + steps, status, words)

        found = each(problem, one, self.name, self.threads or os.cpu_count() or 1, exact=False)
        stats = {**found.stats, "epsilon": torch.from_numpy(eps).to(problem.cost.device)}
        return replace(found, stats=stats, seconds=time.perf_counter() - begin)

    def _newton(
        self, cost: np.ndarray, a: np.ndarray, b: np.ndarray, g: np.ndarray, eps: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float, float]:
        """Newton from `g` at one epsilon: plan, f, g, steps taken, marginal error, share of the Hessian."""
        from scipy.sparse import csr_matrix, diags_array
        from scipy.sparse.linalg import LinearOperator, cg

        plan, f, value = _semi_dual(cost, a, b, g, eps)
        error, taken, share, n = np.inf, 0, 1.0, len(b)
        for taken in range(self.steps + 1):
            columns = plan.sum(0)
            slope = b - columns
            error = float(np.abs(slope).sum())
            if not error >= tolerance or taken == self.steps:
                break
            kept = csr_matrix(np.where(plan * n >= self.drop * a[:, None], plan, 0.0))
            share = kept.nnz / plan.size
            across, back = diags_array(1 / a) @ kept, kept.T.tocsr()
            damped = columns * (1 + min(error, 1e-2)) + 1e-300
            hessian = LinearOperator((n, n), matvec=lambda x, A=across, B=back, c=damped: c * x - B @ (A @ x))
            move, _ = cg(hessian, slope, rtol=min(0.1, error), maxiter=10 * n, M=diags_array(1 / damped))
            g, plan, f, value = _search(cost, a, b, g, eps * (move - move @ b), eps, slope, plan, f, value)
        return plan, f, g, taken, error, share


State = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def _semi_dual(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, g: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Row-exact plan, its source potential, and the semi-dual value at `g`."""
    z = (g - cost) / eps
    top = z.max(1, keepdims=True)
    z = np.exp(z - top)
    total = z.sum(1, keepdims=True)
    f = eps * (np.log(a) - np.log(total[:, 0]) - top[:, 0])
    return z * (a[:, None] / total), f, float(a @ f + b @ g)


def _search(
    cost: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    g: np.ndarray,
    move: np.ndarray,
    eps: float,
    slope: np.ndarray,
    plan: np.ndarray,
    f: np.ndarray,
    value: float,
) -> State:
    """The longest of the steps 1, 1/2, 1/4, ... with enough ascent; a Sinkhorn round if there is none.

    Near the optimum the value is flat to rounding, so a step that lowers the marginal error counts too.
    """
    gain, error = float(slope @ move), float(np.abs(slope).sum())
    step = 1.0
    while step > 1e-4 and gain > 0:
        new = g + step * move
        plan_new, f_new, value_new = _semi_dual(cost, a, b, new, eps)
        flat = abs(value_new - value) <= 1e-12 * (1 + abs(value))
        better = float(np.abs(b - plan_new.sum(0)).sum()) < error
        if value_new >= value + 1e-4 * step * gain or (flat and better):
            return new, plan_new, f_new, value_new
        step /= 2
    new = g + eps * (np.log(b) - np.log(np.maximum(plan.sum(0), 1e-300)))
    return (new, *_semi_dual(cost, a, b, new, eps))
