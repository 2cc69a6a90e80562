"""Pivots, and the tokens least like them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, clean_pairwise, needed_unary, ordered_solution
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class Pivot(SubsetSolver):
    """Keep the pivots, then per pivot the most distant tokens that are still left.

    The `pivots` tokens with the largest scores are visual pivots (ties to the lower index) and always kept;
    the first `text_pivots` present rows of `anchors` (the strongest, where strengths are known) are text
    pivots and only steer.  Visual pivots are visited by index, then text pivots by index.  The rest of the
    budget is shared out evenly over all pivots, one more for the first ones where it does not divide, and
    each pivot in turn takes that many of the tokens still left with the largest `pairwise` (or anchor)
    distance.  `dart_pivots` visits them as DART's code does.
    """

    name: ClassVar[str] = "pivot"
    source: ClassVar[str] = "DART (EMNLP 2025), section 3"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_min", "max_sum"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "uses_order"})
    moved: ClassVar[dict[str, str]] = {
        "pivot_order": "pivot visits by index; write dart_pivots for the order of DART's code",
        "prefix": "the layout of the prompt matters to dart_pivots only",
    }
    pivots: int = param(4, low=0, doc="visual pivots")
    text_pivots: int = param(4, low=0, doc="most anchors used as pivots")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        pairwise = clean_pairwise(problem)
        if problem.anchors is None and self.pivots == 0:
            raise ProblemError("pivot has no pivots: set `pivots` above 0 or give the problem anchors")
        score = needed_unary(self, problem, why="its visual pivots") if self.pivots else None
        count = min(self.pivots, problem.shape[1])
        visual = torch.zeros(problem.shape[0], 0, dtype=torch.int64, device=pairwise.device)
        if score is not None:
            if problem.protected is not None:
                score = score.masked_fill(problem.protected & problem.real, math.inf)
            visual = score.argsort(dim=1, descending=True, stable=True)[:, :count]
        kept_pivots = torch.minimum(problem.k, torch.full_like(problem.k, count))
        valid = torch.arange(count, device=pairwise.device) < kept_pivots[:, None]
        rows, usable, place = self._rows(problem, pairwise, visual=visual, valid=valid)
        free = problem.real.clone()
        free.scatter_(1, visual, free.gather(1, visual) & ~valid)
        left = problem.k - kept_pivots
        if problem.protected is not None:
            rest = problem.protected & free
            left = left - rest.sum(1)
            free = free & ~rest
        visits = self._visits(place, usable)
        keep = walk_pivots(rows, visits, usable=usable, free=free, left=left)
        keep.scatter_(1, visual, valid | keep.gather(1, visual))
        if problem.protected is not None:
            keep |= problem.protected & problem.real
        first = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, : problem.most]
        order = torch.where(keep.gather(1, first), first, -1)
        return ordered_solution(problem, order, solver=self, started=started, pivots=visual)

    def _rows(
        self, problem: SubsetProblem, pairwise: Tensor, *, visual: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances `[B,P,N]` from every pivot, which of them exist `[B,P]`, and their place `[B,P]`."""
        batch = torch.arange(problem.shape[0], device=pairwise.device)[:, None]
        rows, place = pairwise[batch, visual], visual
        if problem.anchors is None or self.text_pivots == 0:
            return rows, valid, place
        present = (problem.anchors != math.inf).any(2)
        if self.pivots == 0 and not bool(present.any(1).all()):
            raise ProblemError("pivot: a sample has neither visual nor text pivots; set `pivots` above 0")
        if problem.anchor_strength is not None:  # strongest first, which the order of a set depends on
            strength = problem.anchor_strength.double().masked_fill(~present, -math.inf)
            text = strength.argsort(dim=1, descending=True, stable=True)[:, : self.text_pivots]
        else:
            text = (~present).to(torch.int8).argsort(dim=1, stable=True)[:, : self.text_pivots]
        text_rows = problem.anchors[batch, text].to(rows.dtype).masked_fill(~problem.real[:, None, :], 0)
        tokens = problem.real.sum(1, keepdim=True)
        return (
            torch.cat([rows, text_rows], 1),
            torch.cat([valid, present.gather(1, text)], 1),
            torch.cat([place, tokens + text], 1),
        )

    def _visits(self, place: Tensor, usable: Tensor) -> Tensor:
        """`[B,P]` int64: which pivot is visited when; absent ones last."""
        return place.masked_fill(~usable, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)


def walk_pivots(rows: Tensor, visits: Tensor, *, usable: Tensor, free: Tensor, left: Tensor) -> Tensor:
    """Let pivots pick in turn, without replacement: `[B,N]` bool picks.

    Parameters
    ----------
    rows
        `[B,P,N]` distance of every token from every pivot.
    visits
        `[B,P]` pivot numbers in order.
    usable
        `[B,P]` bool, False at absent pivots.
    free
        `[B,N]` bool candidates.
    left
        `[B]` int64 number of tokens to pick, shared over the usable pivots, ties to the lower index.

    Returns
    -------
    Tensor
        `[B,N]` bool.
    """
    batch, pivots, _ = rows.shape
    number = torch.arange(batch, device=rows.device)
    present = usable.gather(1, visits)
    total = present.sum(1).clamp_min(1)
    picked = torch.zeros_like(free)
    for t in range(pivots):
        # What does not divide evenly goes to the pivots that are visited first.
        live = present[:, t]
        seen = present[:, :t].sum(1)
        share = (left // total + (seen < left % total)).masked_fill(~live, 0)
        ranked = (
            rows[number, visits[:, t]]
            .masked_fill(~free, -math.inf)
            .argsort(dim=1, descending=True, stable=True)
        )
        place = torch.empty_like(ranked)
        place.scatter_(1, ranked, torch.arange(ranked.shape[1], device=rows.device).expand_as(ranked))
        taken = free & (place < share[:, None])
        picked, free = picked | taken, free & ~taken
    return picked
