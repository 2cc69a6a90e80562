"""Partial transport, exactly: one dummy atom a side takes what is not moved."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import Answer, Atoms, each
from pruneopt.parts.solvers.emd import network_simplex
from pruneopt.problems.relaxed.partial import Partial as Stated
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem

KEEP_APART = 2.0  # what dummy to dummy costs where real costs lie in [0,1]: more than it can save


@dataclass(frozen=True)
class Partial(TransportSolver):
    """`min <P,C>` with `P 1 <= a`, `P^T 1 <= b` and total mass `mass`: the dearest mass stays where it is.

    A dummy target takes the rest of the sources for nothing, a dummy source fills the rest of the targets,
    and the network simplex solves the balanced problem with both.  Value, bound and gap are those of the
    partial problem.  Sources that `row_sum` reads as empty are those that nothing is near to.  float64 on
    the CPU.

    Sources: Caffarelli, McCann 2010; Chapel, Alaya, Gasso 2020 (dummy atoms).
    """

    name: ClassVar[str] = "partial"
    source: ClassVar[str] = "Chapel, Alaya, Gasso, NeurIPS 2020; network simplex via POT"
    tags: ClassVar[frozenset[str]] = frozenset({"relaxed", "exact"})
    mass: float = param(0.9, above=0, high=1, doc="share of the mass that is moved")
    threads: int = param(0, low=0, doc="problems solved at the same time; 0 is one per core")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `OPTIMAL` where the certificate of the partial problem confirms it."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="numItermax reached")
            found = each(problem, self._one, solver=self.name, threads=self.threads or os.cpu_count() or 1)
        return replace(found, order="neither", relaxation=Stated(self.mass))

    def _one(self, atoms: Atoms) -> Answer:
        rest = 1 - self.mass
        if rest == 0:
            found = network_simplex(atoms, 10_000_000)
            assert found.f is not None and found.g is not None
            top = found.g.max()  # prices of the targets are at least 0
            return replace(found, f=found.f + top, g=found.g - top)
        cost = np.pad(atoms.cost, ((0, 1), (0, 1)))
        cost[-1, -1] = KEEP_APART
        a, b = (np.append(x, rest) / (1 + rest) for x in (atoms.a, atoms.b))
        found = network_simplex(replace(atoms, cost=cost, a=a, b=b), 10_000_000)
        assert found.f is not None and found.g is not None
        # f_i + g_dummy = -u_i and g_j + f_dummy = -v_j are prices of the marginals, -(both dummies) the level
        f, g = found.f[:-1] - found.f[-1], found.g[:-1] + found.f[-1]
        return replace(found, plan=found.plan[:-1, :-1] * (1 + rest), f=f, g=g)
