"""Transport onto groups of targets instead of targets, for more tokens than a matrix holds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import TransportSolver, param, part_param
from pruneopt.parts.solvers._clusters import target_groups
from pruneopt.problems.certificate import round_to_polytope
from pruneopt.problems.pooled import Shared, pool_rows, pooled
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, rows_of


@dataclass(frozen=True)
class Clustered(TransportSolver):
    """`min <P,C>` over plans that treat the targets of a group alike: `P_ij = Q_il b_j / B_l` for j in l.

    Such a plan costs `<Q, D>` with `D_il` the mean cost of group l, so it is transport from the sources onto
    the groups, which the transport solver `by` solves; `Q` is rounded to be feasible, and so then is `P`.
    The value is therefore a true upper bound, and a c-transform of the source potential over all targets the
    lower one.  With as many groups as targets it is `by` itself.

    Mean costs come from mean features where the cost allows it, O(NKD), else from reading every entry once.
    The plan is kept in its factors, O((N+M)K); plan, cost and certificate are read by rows.

    Sources: groups as anchors: Lin, Azabou, Dyer 2021; costs of means: docs/solvers.md.
    """

    name: ClassVar[str] = "clustered"
    source: ClassVar[str] = "transport onto groups of targets, after Lin, Azabou, Dyer, ICML 2021"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order", "rows"})
    clusters: int = param(256, low=1, doc="groups of targets")
    by: TransportSolver = part_param(
        TransportSolver,
        {"kind": "sinkhorn", "epsilon": 0.02, "rounds": 50},
        doc="what solves the small problem",
    )

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Statuses of `by`, but `HEURISTIC` for an optimum of the groups that is none of the targets."""
        begin = time.perf_counter()
        here = problem.detached()
        a, b = (x.double() / x.double().sum(1, keepdim=True) for x in (here.a, here.b))
        count = min(self.clusters, b.shape[1])
        label = target_groups(here, count)
        ones = torch.ones_like(b)[:, :, None]
        mass = pool_rows(ones, (label, b, count)).squeeze(2)
        share = b / mass.gather(1, label).clamp_min(1e-300)
        cost = pooled(rows_of(here.cost), (label, share, count)).to(here.cost.dtype)
        small = TransportProblem(cost, here.a, mass.to(cost.dtype), here.row_mask, mass > 0)
        found = self.by.solve(small)
        left = round_to_polytope(found.plan.double(), a, b=mass)
        exact = count == b.shape[1]
        return TransportSolution(
            time.perf_counter() - begin,
            {**found.stats, "groups": label},
            problem=problem,
            plan=Unstored(Shared(left, label, share)),
            f=found.f,
            g=found.g.gather(1, label) if exact and found.g is not None else None,
            rounds=found.rounds,
            ended=tuple(e if exact or e is not Status.OPTIMAL else Status.HEURISTIC for e in found.ended),
            order="both",
            solver=self.name,
        )
