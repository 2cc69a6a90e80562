"""The fastest exact transport solver that applies.

Problem: `min <P, C>` over plans with marginals `a` and `b`.  Update: none of its own; square uniform problems
are assignments (Birkhoff 1946) and go to `assignment`, all others to `emd`, whose files name the sources.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from pruneopt.parts import TransportSolver, param
from pruneopt.parts.solvers._common import Answer, Atoms, each
from pruneopt.parts.solvers._eased import eased
from pruneopt.parts.solvers.assignment import is_assignment, shortest_augmenting_path
from pruneopt.parts.solvers.emd import network_simplex
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Exact(TransportSolver):
    """`assignment` for problems that are square and uniform, `emd` for all others.

    Chosen for every problem of the batch by itself, so that batch mates cannot change a result;
    `stats["details"][i]["method"]` says which it was.
    """

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = "emd or assignment"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})
    threads: int = param(0, low=0, doc="problems solved at the same time; 0 is one per core")

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status `OPTIMAL` where the certificate confirms it, or the reason why not."""

        def one(atoms: Atoms) -> Answer:
            if is_assignment(atoms.a, atoms.b):
                return eased(atoms, shortest_augmenting_path)
            return eased(atoms, partial(network_simplex, pivots=10_000_000))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="numItermax reached")
            return each(problem, one, solver=self.name, threads=self.threads or os.cpu_count() or 1)
