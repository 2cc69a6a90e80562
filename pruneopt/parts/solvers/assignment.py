"""Exact transport between equally many atoms of equal mass.

Problem: `min_p sum_i C_i,p(i) / n` over permutations, which is transport with uniform masses (Birkhoff 1946).
Update: one source more is matched along the shortest path that may undo earlier matches, until all are.
Source: Crouse 2016, through SciPy; potentials by Bellman-Ford from the matching.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.errors import ProblemError
from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import Answer, Atoms, each
from pruneopt.parts.solvers._eased import eased
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

ULP = float(np.finfo(np.float64).eps)


def is_assignment(a: np.ndarray, b: np.ndarray) -> bool:
    """As many targets as sources, and all masses `1/n` to the rounding of float64 (four times its epsilon).

    A float32 marginal whose entries are equal is equal to that after it has been divided by its sum.
    """
    n = len(a)
    return n == len(b) and bool(max(np.abs(a * n - 1).max(), np.abs(b * n - 1).max()) <= 4 * ULP)


def shortest_augmenting_path(atoms: Atoms) -> Answer:
    """One problem through SciPy, with duals; both marginals must be uniform."""
    from scipy.optimize import linear_sum_assignment

    n = len(atoms.a)
    _, match = linear_sum_assignment(atoms.cost)
    plan = np.zeros_like(atoms.cost)
    plan[np.arange(n), match] = atoms.a
    f, g = _duals(atoms.cost, match)
    return Answer(plan, f, g, 0, Status.OPTIMAL, {"method": "assignment"})


def _duals(cost: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Potentials that prove an optimal matching, which SciPy does not return.

    Complementary slackness reads `g_j - g_match(i) <= C_ij - C_i,match(i)`: shortest paths (Bellman-Ford,
    vectorised) in a graph without negative cycles.  It ends when no potential moves by more than the rounding
    of the dearest matched pair and of the potentials themselves, whatever the highest cost is.
    """
    paid = cost[np.arange(len(cost)), match]
    g, reach = np.zeros(len(cost)), np.empty_like(cost)
    for _ in range(len(cost)):
        np.add(cost, (g[match] - paid)[:, None], out=reach)
        new = np.minimum(g, reach.min(0))
        if (g - new).max() <= 4 * ULP * (paid.max() + np.abs(new).max()):
            break
        g = new
    return np.subtract(cost, g, out=reach).min(1), g


@dataclass(frozen=True)
class Assignment(TransportSolver):
    """The exact optimum, a permutation, for square problems with uniform marginals; float64 on the CPU.

    Uniform means equal to the rounding of float64.  Some optimum is a permutation (Birkhoff); measured
    O(n^2.2), several times faster than `emd`.  SciPy returns no duals, so they are computed
    afterwards from the matching.

    Source: Crouse 2016 (shortest augmenting path), through `scipy.optimize.linear_sum_assignment`.
    """

    name: ClassVar[str] = "assignment"
    source: ClassVar[str] = "Crouse, IEEE TAES 2016, via SciPy"
    tags: ClassVar[frozenset[str]] = frozenset({"exact", "uniform_square"})
    threads: int = param(0, low=0, doc="problems solved at the same time; 0 is one per core")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `OPTIMAL` where the certificate confirms it.

        Raises ProblemError naming the problem that is not square and uniform.
        """

        def one(atoms: Atoms) -> Answer:
            if not is_assignment(atoms.a, atoms.b):
                n, m = atoms.cost.shape
                raise ProblemError(
                    "assignment needs as many targets as sources, all of equal mass; problem "
                    f"{atoms.index} has {n} sources and {m} targets{', not all equal' if n == m else ''}. "
                    "Use emd or exact"
                )
            return eased(atoms, shortest_augmenting_path)

        return each(problem, one, solver=self.name, threads=self.threads or os.cpu_count() or 1)
