"""Transport from k sources of any mass: facility location over a cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruneopt.problems.certificate import Certificate, above_cheapest, c_transform
from pruneopt.problems.relaxed._relaxation import Relaxation
from pruneopt.problems.transport import TransportProblem

if TYPE_CHECKING:
    from pruneopt.problems.solution import SubsetSolution


@dataclass(frozen=True)
class KSources(Relaxation):
    """`min <P,C>` with `P^T 1 = b` and mass at no more than k sources, which may send any amount.

    For a choice S of sources every target is served by the cheapest of them, so this is
    `min_S sum_j b_j min_{i in S} C_ij`: the subset problem `facility_location`.  Its bound is that of the
    kind.

    Parameters
    ----------
    served
        The subset problem over the cost above the cheapest pair, and its answer.
    """

    served: SubsetSolution

    def certify(self, problem: TransportProblem, plan: Tensor, *, g: Tensor | None) -> Certificate:
        low, cost, _, b = above_cheapest(problem)
        plan, keep = plan.double(), self.served.keep
        outside = plan.masked_fill(keep[:, :, None], 0).sum((1, 2))
        missed = (plan.sum(1) - b).abs().sum(1)
        inside = plan.masked_fill(~keep[:, :, None], 0)
        sent = inside.sum(1)
        cheapest = cost.masked_fill(~keep[:, :, None], math.inf).amin(1)
        each = torch.where(sent > 0, (inside * cost).sum(1) / sent.clamp_min(1e-300), cheapest)
        paid = (b * each).sum(1)
        paid = torch.where(plan.isfinite().flatten(1).all(1), paid, torch.full_like(paid, math.nan))
        limit = self.served.upper_bound
        bound = torch.zeros_like(paid) if limit is None else (-limit).clamp_min(0)
        tight = c_transform(cost, torch.zeros_like(b), real=problem.pair_mask, rows=True)
        slack = self.served.tolerance * self.served.problem.magnitude(keep)
        return Certificate(
            low + paid, low + bound, paid - bound, outside, missed, slack, tight + low[:, None],
            torch.zeros_like(b),
        )  # fmt: skip
