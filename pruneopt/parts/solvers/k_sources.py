"""Transport from k sources of any mass: facility location, said as transport."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import SubsetSolver, TransportSolver, param, part_param
from pruneopt.problems.budget import Budget
from pruneopt.problems.certificate import above_cheapest
from pruneopt.problems.relaxed.k_sources import KSources as Stated
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class KSources(TransportSolver):
    """`min <P,C>` with `P^T 1 = b` and mass at `keep` sources only, which may send any amount.

    Every target is served by the cheapest source of a choice, so the choice is all there is to find: the
    subset problem `facility_location` over `b_j C_ij`, given to the subset solver `by`.  Value, bound, gap
    and status are those of that problem, in cost units.  `row_sum` reads how much each source serves.  The
    source mass plays no part beyond its support; between `one_sided` at epsilon 0, which lets all sources
    serve, and the medoid of a picture at `keep: 1` token.

    Sources: Cornuejols, Fisher, Nemhauser 1977; as a semi-relaxed transport: docs/methods/topv.md.
    """

    name: ClassVar[str] = "k_sources"
    source: ClassVar[str] = "facility location (Cornuejols, Fisher, Nemhauser 1977) over a cost"
    tags: ClassVar[frozenset[str]] = frozenset({"relaxed"})
    keep: float = param(0.25, above=0, doc="sources that may send: a share up to 1, or a count above it")
    by: SubsetSolver = part_param(SubsetSolver, "lazy_greedy", doc="what chooses them")

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget(keep=self._keep)

    @property
    def _keep(self) -> float | int:
        return int(self.keep) if self.keep > 1 and self.keep == int(self.keep) else self.keep

    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Status of `by`, as far as the bound of facility location supports it.

        Waits for the device: how many sources carry mass decides how many may be chosen.
        """
        begin = time.perf_counter()
        _, cost, _, b = above_cheapest(problem.detached())
        real = problem.a > 0
        counts = tuple(min(self._count(n), n) for n in real.sum(1).tolist())
        worth = (b[:, None, :] * cost).transpose(1, 2)
        k = torch.tensor(counts, dtype=torch.int64, device=cost.device)
        subset = SubsetProblem.build(
            "facility_location", k, anchors=worth, mask=real, counts=counts, check=False
        )
        served = self.by.solve(subset)
        home = cost.masked_fill(~served.keep[:, :, None], torch.inf).argmin(1, keepdim=True)
        plan = torch.zeros_like(cost).scatter_(1, home, b[:, None, :])
        spoiled = torch.full_like(plan, torch.nan)
        plan = torch.where(cost.isfinite().all(2).all(1)[:, None, None], plan, spoiled)
        return TransportSolution(
            time.perf_counter() - begin,
            {"order": served.order, **served.stats},
            problem=problem,
            plan=plan,
            rounds=k,
            ended=served.ended,
            order="target",
            solver=self.name,
            relaxation=Stated(served),
        )

    def _count(self, tokens: int) -> int:
        return Budget(keep=min(self._keep, tokens) if self.keep > 1 else self._keep).count(tokens, tokens)
