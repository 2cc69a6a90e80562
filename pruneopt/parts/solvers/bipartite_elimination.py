"""Drop the most duplicated tokens, a few per round, by alternating halves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, clean_pairwise, ordered_solution
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class BipartiteElimination(SubsetSolver):
    """Max-min dispersion by backward elimination over a bipartite split.

    Protected tokens are set aside.  The rest, listed by falling score (by index without scores), is split
    into even and odd places; each even token gets its distance to the nearest odd one, and the `batch`
    nearest even tokens are dropped.  What is left is listed as the surviving even tokens, most alike first,
    then the odd ones, and that list decides the next split.  One swapped pair changes all later splits, so
    the outcome is chaotic to rounding.  O(N^2) a round, (N - k) / batch rounds.

    Source: VisPruner section 3.3; its code fails when the list is odd or the last rounds are too short,
    which are legal here.
    """

    name: ClassVar[str] = "bipartite_elimination"
    source: ClassVar[str] = "VisPruner (ICCV 2025), section 3.3"
    kinds: ClassVar[frozenset[str]] = frozenset({"max_min"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget", "uses_order", "chaotic"})
    batch: int = param(8, low=1, doc="tokens dropped per round")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        pairwise = clean_pairwise(problem)
        forced = torch.zeros_like(problem.real)
        if problem.protected is not None:
            forced = problem.protected & problem.real
        score = torch.zeros(problem.shape, device=pairwise.device)
        if problem.unary is not None:
            score = problem.unary
        score = score.masked_fill(~problem.real | forced, -math.inf)
        listed = score.argsort(dim=1, descending=True, stable=True)
        length = (problem.real & ~forced).sum(1)
        goal = problem.k - forced.sum(1)
        listed = listed[:, : max(1, int(length.max()))]
        rounds = 0
        while bool((length > goal).any()):
            listed, length = self.round(listed, length, goal=goal, pairwise=pairwise)
            listed = listed[:, : max(1, int(length.max()))]
            rounds += 1
        slots = torch.arange(listed.shape[1], device=listed.device)
        rest = listed.masked_fill(slots >= length[:, None], -1)
        core = torch.where(forced, 0, 1).argsort(dim=1, stable=True)
        core = core.masked_fill(slots.new_tensor(range(core.shape[1])) >= forced.sum(1, keepdim=True), -1)
        order = torch.cat([core, rest], 1)
        order = order.gather(1, (order < 0).to(torch.int8).argsort(dim=1, stable=True))
        return ordered_solution(
            problem, order[:, : problem.most], solver=self, started=started, elimination_rounds=rounds
        )

    def round(
        self, listed: Tensor, length: Tensor, *, goal: Tensor, pairwise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One round on the lists `[B,R]`, valid up to `length` `[B]`: the new lists and lengths."""
        width = listed.shape[1]
        slot = torch.arange(width, device=listed.device)
        valid = slot < length[:, None]
        even, odd = listed[:, 0::2], listed[:, 1::2]
        rows = torch.arange(len(listed), device=listed.device)[:, None, None]
        # Tokens at even places against those at odd ones: how near is the nearest?
        distance = pairwise[rows, even[:, :, None], odd[:, None, :]]
        distance = distance.masked_fill(~valid[:, None, 1::2], math.inf)
        nearest = distance.amin(2) if odd.shape[1] else torch.full_like(even, 1, dtype=pairwise.dtype)
        nearest = nearest.masked_fill(~valid[:, 0::2], math.inf)
        # The even ones that are most alike an odd one go, as many as the goal and the batch size allow.
        by_likeness = nearest.argsort(dim=1, stable=True)
        place = torch.empty_like(by_likeness)
        place.scatter_(1, by_likeness, torch.arange(place.shape[1], device=place.device).expand_as(place))
        evens = valid[:, 0::2].sum(1)
        drop = (length - goal).clamp(min=0, max=self.batch).minimum(evens)
        # The new order: even survivors from the most alike on, then the odd ones, then what went and padding.
        key = torch.full((len(listed), width), 3 * width, dtype=torch.int64, device=listed.device)
        key[:, 0::2] = torch.where(place >= drop[:, None], place, 3 * width)
        key[:, 1::2] = width + slot[1::2]
        key = key.masked_fill(~valid, 3 * width)
        done = (drop == 0)[:, None]
        order = torch.where(done, slot.expand_as(key), key.argsort(dim=1, stable=True))
        return listed.gather(1, order), length - drop
