"""Swap improvement of any subset.

Problem: any kind whose swaps have known gains.  Update: the swap that gains most, until none gains.  Gains
stay current from swap to swap (see `problems/kinds/_swaps.py`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver, param
from pruneopt.parts.solvers._walk import check_kind, started_from
from pruneopt.problems.kinds import KindsOffering
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem


@dataclass(frozen=True)
class LocalSearch(SubsetSolver):
    """Best-improvement swaps from the answer of a heuristic until none helps or `rounds` is reached.

    A swap exchanges one chosen token for one that is not; protected tokens never leave.  Ties go to the
    lowest index out, then the lowest in.  The value never falls below that of the start, and a choice that
    no swap improves is a local optimum (for max-sum dispersion with metric distances at least half of the
    optimum: Cevallos, Eisenbrand, Zenklusen 2017).  `start=auto` takes the greedy rule of the kind, or the
    first tokens where it has none; a start that breaks a constraint, or whose determinant is zero, is
    returned as it is.  Where `k` is a maximum, adding a token is a swap too.  O(KN) a round for most kinds.
    """

    name: ClassVar[str] = "local_search"
    source: ClassVar[str] = "textbook: 1-swap neighbourhood, best improvement"
    kinds = KindsOffering("swaps", "swap_gains")
    start: str = param("auto", doc="name of the solver that gives the first answer")
    rounds: int = param(100, low=1, doc="most swaps a sample may make")
    tolerance: float = param(1e-9, low=0, doc="relative improvement that counts as none")

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        check_kind(self, problem)
        started = time.perf_counter()
        first = started_from(self.start, self, problem=problem)
        problem = first.problem  # a start that leaves scores out of the objective keeps them out
        swaps = problem.rules.swaps(problem, first.keep)
        keep, made = first.keep.clone(), torch.zeros_like(problem.k)
        least = self.tolerance * problem.magnitude(keep)
        # protected tokens stay, what is unsound is left alone, and up to a maximum free slots may be filled
        fixed = torch.zeros_like(keep) if problem.protected is None else problem.protected
        free = ~fixed.gather(1, swaps.slots)
        width = torch.arange(swaps.slots.shape[1], device=keep.device)
        may = (width < problem.k[:, None]) if problem.rules.at_most else swaps.filled
        may = may & (free | ~swaps.filled) & problem.value(keep).isfinite()[:, None]
        for _ in range(self.rounds):
            gain = swaps.gains().nan_to_num_(nan=-math.inf, neginf=-math.inf)
            gain.masked_fill_(~(may[:, :, None] & (problem.real & ~keep)[:, None, :]), -math.inf)
            slot, into, most = _best(gain, swaps.tokens)
            sample = (most > least).nonzero().squeeze(1)
            if not len(sample):
                break
            swaps.swap(sample, slot[sample], into=into[sample])
            keep = swaps.keep
            made[sample] += 1
        # rounding, or a swap that raises a determinant and yet makes the choice singular to its dtype
        worse = ~(problem.value(keep) >= problem.value(first.keep))
        keep = torch.where(worse[:, None], first.keep, keep)
        return SubsetSolution(
            seconds=time.perf_counter() - started,
            stats={"swaps": made, "start": first.solver},
            problem=problem,
            keep=keep,
            ended=(Status.HEURISTIC,) * len(keep),
            solver=self.name,
        )


def _best(gain: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[B]` slot, token that comes and gain of the best swap of `[B,K,N]`; of equals the lowest token goes.

    An empty slot, whose token is N, is filled only where that is better than any exchange.
    """
    each = gain.amax(2)
    most = each.amax(1)
    slot = tokens.masked_fill(each < most[:, None], tokens.shape[1] + gain.shape[2]).argmin(1)
    into = gain[torch.arange(len(gain), device=gain.device), slot].argmax(1)
    return slot, into, most
