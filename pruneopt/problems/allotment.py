"""One budget over several problems, spent by a single price.

Let `V_g(k)` be the best that problem g does with k tokens.  The joint problem

    maximise  sum_g V_g(k_g)   over   sum_g k_g = K,   low_g <= k_g <= high_g

has for every price of a token, of any sign, the bound

    price * K + sum_g max_k ( V_g(k) - price * k ),

and where what a token adds falls with every token before it, the split that takes tokens while they add at
least the price reaches it.  So the K largest gains are taken, wherever they are, and the price is the last of
them.  Source: Everett 1963; Fox 1966 (marginal allocation of concave returns).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.solution import Solution, Status, SubsetSolution, settled
from pruneopt.problems.unstored import Unstored

HALVINGS = 64  # of the interval that holds the best price of a bound


@dataclass(frozen=True, eq=False)
class Shares:
    """What several problems may get of one budget or of several.  `B` counts problems, `P` budgets.

    Parameters
    ----------
    pool
        `[B]` int64, the budget that a problem draws on.
    total
        `[P]` int64 tokens of each budget, to be spent in full.
    low, high
        `[B]` int64, the least and the most that a problem gets.
    """

    pool: Tensor
    total: Tensor
    low: Tensor
    high: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """`[P]` sums over the problems of each budget of `values` `[B]`."""
        return torch.zeros(len(self.total), dtype=values.dtype, device=values.device).index_add(
            0, self.pool, values
        )

    def open(self, counts: Tensor) -> Tensor:
        """`[B,K]` bool: the `counts` `[K]` that a problem may have."""
        return (counts >= self.low[:, None]) & (counts <= self.high[:, None])

    def spend(self, gains: Tensor) -> tuple[Tensor, Tensor]:
        """Counts `[B]`, and the price `[P]` float64 that every budget comes to.

        `gains` `[B,K]` is what each further token of a problem adds.  A problem takes tokens while they add
        at least the price, so a gain counts for no more than those before it.  Of equal gains those of
        earlier tokens come first, then those of the problem with the lower number: in another order of the
        problems the same counts come out as a multiset, and with another owner only where problems tie.
        The price is the least gain that was paid for; where floors took all, the best that was not.  Counts
        decide shapes, so this is done on the host.
        """
        pool, total, low, high = (t.cpu().numpy() for t in (self.pool, self.total, self.low, self.high))
        token = np.arange(1, gains.shape[1] + 1)
        free = (token > low[:, None]) & (token <= high[:, None])
        offer = np.minimum.accumulate(np.where(free, gains.double().cpu().numpy(), np.inf), axis=1)
        problem, number = free.nonzero()
        offer, owner = offer[free], pool[problem]
        line = np.lexsort((problem, number, -offer, owner))  # the last key first
        problem, offer, owner = problem[line], offer[line], owner[line]
        place = np.arange(len(line)) - np.searchsorted(owner, owner)  # within its budget
        taken = place < (total - np.bincount(pool, low, len(total)))[owner]
        price, missed = np.full(len(total), np.inf), np.full(len(total), -np.inf)
        np.minimum.at(price, owner[taken], offer[taken])
        np.maximum.at(missed, owner[~taken], offer[~taken])
        price = np.where(price < np.inf, price, missed)
        counts = low + np.bincount(problem[taken], minlength=len(low))
        return torch.from_numpy(counts).to(self.low), torch.from_numpy(price).to(self.low.device)

    def bound(self, caps: Tensor) -> Tensor:
        """`[P]` float64: no split is worth more.

        `caps` `[B,N]` float64 bounds every problem for every count from 1 to N.  The price is the best one to
        `HALVINGS` digits; every price on the way certifies.
        """
        count = torch.arange(1, caps.shape[1] + 1, device=caps.device)
        may = self.open(count)
        caps = caps.masked_fill(~may, -math.inf)
        finite = may & caps.isfinite()
        top = caps.masked_fill(~finite, -math.inf).amax(1)
        spread = (top - caps.masked_fill(~finite, math.inf).amin(1)).clamp_min(0).nan_to_num(0.0, 0.0, 0.0)
        high = torch.zeros_like(self.total, dtype=caps.dtype).scatter_reduce(0, self.pool, spread, "amax")
        low, best = -high, torch.full_like(high, math.inf)
        price = torch.zeros_like(high)
        for _ in range(HALVINGS):
            worth, at = (caps - price[self.pool, None] * count).max(1)
            used = self.sums(count[at])
            size = self.sums(caps.gather(1, at[:, None]).squeeze(1).abs()) + price.abs() * self.total
            best = torch.fmin(best, price * self.total + self.sums(worth) + 1e-14 * size)
            low, high = (
                torch.where(used > self.total, price, low),
                torch.where(used > self.total, high, price),
            )
            price = (low + high) / 2
        return best


@dataclass(frozen=True, eq=False, repr=False)
class Allotment(Solution):
    """How one budget was spent over several problems; values and bounds are derived when first read.

    Parameters
    ----------
    answer
        The choice, a row per problem, at the counts that were found.
    shares
        What each problem may get.
    gains
        `[B,K]` float64 what each further token of a problem adds, in the order in which its solver takes
        them; NaN beyond its ceiling.
    price
        `[P]` float64: every token that a problem has beyond its floor added at least this.
    solver
        Name of the rule.
    """

    answer: SubsetSolution = None  # type: ignore[assignment]
    shares: Shares = None  # type: ignore[assignment]
    gains: Tensor = None  # type: ignore[assignment]
    price: Tensor = None  # type: ignore[assignment]
    solver: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of every problem."""
        counts = self.answer.problem.counts
        return tuple(self.answer.problem.k.tolist()) if counts is None else counts

    @cached_property
    def value(self) -> Tensor:
        """`[P]` float64: what the problems of a budget are worth together."""
        return self.shares.sums(self.answer.value)

    @cached_property
    def _caps(self) -> Tensor | str:
        problem = self.answer.problem
        if isinstance(problem.pairwise, Unstored):
            return "a bound for every count reads the whole pairwise term, which is given by rows here"
        return problem.rules.bounds(problem, self.answer.keep)

    @cached_property
    def upper_bound(self) -> Tensor | None:
        """`[P]` float64: no split within floors and ceilings, and no choice of tokens, is worth more."""
        return None if isinstance(self._caps, str) else self.shares.bound(self._caps)

    @property
    def no_bound(self) -> str:
        """Why there is no bound; empty when there is one."""
        return self._caps if isinstance(self._caps, str) else ""

    @property
    def gap(self) -> Tensor | None:
        """`[P]` upper bound minus value, or None when there is no bound."""
        if self.upper_bound is None:
            return None
        same = self.upper_bound == self.value
        return torch.where(same, 0.0, self.upper_bound - self.value)

    @cached_property
    def status(self) -> tuple[Status, ...]:
        """One per budget: what forbids the use of a part, or OPTIMAL where all are and it holds."""
        parts: list[set[Status]] = [set() for _ in self.shares.total]
        for pool, status in zip(self.shares.pool.tolist(), self.answer.status, strict=True):
            parts[pool].add(status)
        words = [next((s for s in found if not s.ok), _together(found)) for found in parts]
        if Status.OPTIMAL not in words or self.gap is None:
            return tuple(words)
        slack = self.answer.tolerance * self.shares.sums(self.answer.problem.magnitude(self.answer.keep))
        return tuple(
            settled(word, gap, slack=s) if word.ok else word
            for word, gap, s in zip(words, self.gap.tolist(), slack.tolist(), strict=True)
        )


def _together(found: set[Status]) -> Status:
    return Status.OPTIMAL if found == {Status.OPTIMAL} else Status.HEURISTIC
