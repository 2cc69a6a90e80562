"""Solvers of other libraries behind the interface of pruneopt, for side-by-side measurement only.

Every peer is given the same epsilon (in cost units), the same number of rounds and float32, and is judged by
the same certificate.  Potentials are used where the library returns them.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.lab.clock import Stopwatch
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

Found = tuple[Any, Any, Any]  # plan, f, g
Solve = Callable[..., Found]  # (cost, *, a, b, eps, rounds), arrays of one problem or tensors of a batch


@dataclass(frozen=True)
class Peer:
    """A foreign solver: `epsilon` is a share of the cost range; `one` runs per problem, `many` per batch."""

    label: str
    order: str
    one: Solve | None = None
    many: Solve | None = None
    needs: str = "ot"
    epsilon: float = 0.05
    rounds: int = 100
    uniform_only: bool = False
    compiles: bool = False  # at the first call of a shape, which says nothing about its speed

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None

    @property
    def absence(self) -> str:
        """Why it cannot be measured here, and the cure; empty where it can."""
        package = {"ot": "pot", "ott": "ott-jax"}.get(self.needs, self.needs)
        return "" if self.installed else f"{self.label} needs {package}: pip install 'pruneopt[peers]'"

    def solve(self, problem: TransportProblem) -> TransportSolution:
        started = Stopwatch()
        low, high = problem.span()
        eps = self.epsilon * (high - low)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.many is not None:
                plan, f, g = self.many(problem.cost, a=problem.a, b=problem.b, eps=eps, rounds=self.rounds)
            else:
                plan, f, g = self._loop(problem, eps)
        return TransportSolution(
            started.wall,
            {"epsilon": eps.double()},
            problem=problem,
            plan=plan,
            f=None if f is None else f.double(),
            g=None if g is None else g.double(),
            rounds=torch.full((len(eps),), self.rounds),
            ended=(Status.ROUNDS_DONE,) * len(eps),
            order=self.order,
            solver=self.label,
        )

    def _loop(self, problem: TransportProblem, eps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        assert self.one is not None
        rows = zip(problem.cost, problem.a, problem.b, eps.tolist(), strict=True)
        found = [
            self.one(c.numpy(), a=a.numpy(), b=b.numpy(), eps=e, rounds=self.rounds) for c, a, b, e in rows
        ]
        plan, f, g = zip(*found, strict=True)

        def stack(parts: tuple[Any, ...]) -> Tensor | None:
            return None if parts[0] is None else torch.stack([torch.as_tensor(np.asarray(x)) for x in parts])

        whole = stack(plan)
        assert whole is not None
        return whole, stack(f), stack(g)


def _pot(method: str) -> Solve:
    def run(cost: np.ndarray, *, a: np.ndarray, b: np.ndarray, eps: float, rounds: int) -> Found:
        import ot

        plan, log = ot.sinkhorn(
            a, b, cost, eps, method=method, numItermax=rounds, stopThr=0, log=True, warn=False
        )
        if "alpha" in log:
            return plan, log["alpha"], log["beta"]
        if "log_u" in log:
            return plan, eps * log["log_u"], eps * log["log_v"]
        return plan, eps * np.log(log["u"]), eps * np.log(log["v"])

    return run


def _pot_torch(cost: Tensor, *, a: Tensor, b: Tensor, eps: Tensor, rounds: int) -> Found:
    import ot

    found = [
        ot.sinkhorn(p, q, c, e, method="sinkhorn_log", numItermax=rounds, stopThr=0, log=True, warn=False)
        for c, p, q, e in zip(cost, a, b, eps.tolist(), strict=True)
    ]
    scale = eps[:, None]
    f = scale * torch.stack([log["log_u"] for _, log in found])
    return torch.stack([p for p, _ in found]), f, scale * torch.stack([log["log_v"] for _, log in found])


def _pot_batch(cost: Tensor, *, a: Tensor, b: Tensor, eps: Tensor, rounds: int) -> Found:
    """`ot.solve_batch` has one epsilon for all problems, so costs are brought to one scale first.

    0.9.6 names the algorithm `solver`, 0.9.7 `method`.
    """
    import ot

    name = "method" if "method" in inspect.signature(ot.solve_batch).parameters else "solver"
    found = ot.solve_batch(
        cost / eps[:, None, None], reg=1.0, a=a, b=b, max_iter=rounds, tol=0.0, **{name: "log_sinkhorn"}
    )
    f, g = found.potentials
    return found.plan, f * eps[:, None], g * eps[:, None]


def _scipy(cost: np.ndarray, *, a: np.ndarray, b: np.ndarray, eps: float, rounds: int) -> Found:
    from scipy.optimize import linear_sum_assignment

    rows, cols = linear_sum_assignment(cost)
    plan = np.zeros_like(cost)
    plan[rows, cols] = a
    return plan, None, None


def _pot_emd(cost: np.ndarray, *, a: np.ndarray, b: np.ndarray, eps: float, rounds: int) -> Found:
    import ot

    p, q = a.astype(np.float64), b.astype(np.float64)
    plan, log = ot.emd(p / p.sum(), q / q.sum(), cost.astype(np.float64), numItermax=10**7, log=True)
    return plan, log["u"], log["v"]


def _geomloss(cost: Tensor, *, a: Tensor, b: Tensor, eps: Tensor, rounds: int) -> Found:
    """`geomloss.ot.solve_batch`, symmetric averaged updates; one regularisation for the whole batch."""
    from geomloss import ot

    found = ot.solve_batch(cost / eps[:, None, None], reg=1.0, a=a, b=b, max_iter=rounds)
    scale = eps[:, None]
    return found.plan, found.potential_a * scale, found.potential_b * scale


@lru_cache(maxsize=32)
def _ott_compiled(shape: tuple[int, ...], rounds: int, *, logarithms: bool) -> Any:
    """OTT-JAX for one shape, `vmap` over problems: a fixed number of rounds makes its loop a scan."""
    import jax
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(
        min_iterations=rounds, max_iterations=rounds, inner_iterations=rounds, lse_mode=logarithms
    )

    def one(c: Any, p: Any, q: Any) -> Any:  # noqa: PLR0917 vmap calls
        out = solver(linear_problem.LinearProblem(geometry.Geometry(c, epsilon=1.0), p, q))
        return out.matrix, out.f, out.g

    return jax.jit(jax.vmap(one))


def _ott(*, logarithms: bool) -> Solve:
    """In the log domain, or with a kernel and scalings."""

    def run(cost: Tensor, *, a: Tensor, b: Tensor, eps: Tensor, rounds: int) -> Found:
        compiled = _ott_compiled(tuple(cost.shape), rounds, logarithms=logarithms)
        plan, f, g = compiled((cost / eps[:, None, None]).numpy(), a.numpy(), b.numpy())
        scale = eps[:, None]
        back = [torch.from_numpy(np.array(x)) for x in (plan, f, g)]
        return back[0], back[1] * scale, back[2] * scale

    return run


PEERS = {
    peer.label: peer
    for peer in (
        Peer("pot_sinkhorn", "source", one=_pot("sinkhorn")),
        Peer("pot_sinkhorn_log", "source", one=_pot("sinkhorn_log")),
        Peer("pot_sinkhorn_log_torch", "source", many=_pot_torch),
        Peer("pot_sinkhorn_stabilized", "source", one=_pot("sinkhorn_stabilized")),
        Peer("pot_solve_batch", "target", many=_pot_batch),
        Peer("pot_emd", "both", one=_pot_emd),
        Peer("scipy_assignment", "both", one=_scipy, needs="scipy", uniform_only=True),
        Peer("geomloss", "neither", many=_geomloss, needs="geomloss"),
        Peer("ott", "source", many=_ott(logarithms=True), needs="ott", compiles=True),
        Peer("ott_kernel", "source", many=_ott(logarithms=False), needs="ott", compiles=True),
    )
}
