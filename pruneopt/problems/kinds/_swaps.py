"""Gains of all swaps of a choice, kept current while swaps are made.

A choice is held in slots, one for every token that it may have; a swap puts another token into a slot.  What
the gains are made of is changed by a swap, not computed anew, and only the rows of chosen tokens are held:
`[B,K,N]` instead of `[B,N,N]`.  Each kind says in its file what that is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class Swaps(ABC):
    """Swaps of the choice `keep` `[B,N]` of the problem; both stay as they are.

    Attributes
    ----------
    slots: `[B,K]` token of every slot, in rising order at first; any token where `filled` is False.
    filled: `[B,K]` bool.  Where `k` is a maximum there is a slot for each of them, and filling one is a swap.
    """

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        self.problem = problem
        width = problem.most if problem.rules.at_most else int(keep.sum(1).max())
        self.slots, self.filled = chosen_first(keep, max(1, width))

    @abstractmethod
    def gains(self) -> Tensor:
        """`[B,K,N]` float64: what it gains to put token n into slot s; -inf where that is not allowed.

        Meaningless for tokens that are chosen or no tokens, and for slots that are not filled unless they
        may be.
        """

    @abstractmethod
    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        """Bring up to date what `gains` reads; `slots` still says who goes."""

    def swap(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        """Put tokens `into` `[M]` into the slots of different samples `[M]`."""
        self.update(sample, slot, into=into)
        self.slots[sample, slot] = into
        self.filled[sample, slot] = True

    @property
    def keep(self) -> Tensor:
        """`[B,N]` bool: the choice as it is now."""
        batch, tokens = self.problem.shape
        keep = torch.zeros(batch, tokens + 1, dtype=torch.bool, device=self.slots.device)
        return keep.scatter_(1, self.tokens, True)[:, :tokens]

    @property
    def tokens(self) -> Tensor:
        """`[B,K]` token of every slot, N where there is none."""
        return torch.where(self.filled, self.slots, self.problem.shape[1])


class Recomputed(Swaps):
    """For kinds that say no more than `swap_gains`: all of them anew after every swap."""

    def gains(self) -> Tensor:
        whole = self.problem.rules.swap_gains(self.problem, self.keep)
        return whole.gather(1, self.slots[:, :, None].expand(-1, -1, whole.shape[2]))

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        """There is nothing to bring up to date."""


def chosen_first(keep: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`[B,width]` places of the chosen tokens, rising, and which of the entries are chosen ones."""
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    return order, keep.gather(1, order)


def dense_gains(swaps: Swaps) -> Tensor:
    """`[B,N,N]` gains of exchanging chosen token i for token j, -inf in the rows of the others."""
    gains = swaps.gains()
    tokens = gains.shape[2]
    whole = gains.new_full((len(gains), tokens + 1, tokens), -math.inf)
    return whole.scatter_(1, swaps.tokens[:, :, None].expand(-1, -1, tokens), gains)[:, :tokens]


def symmetric_rows(
    problem: SubsetProblem, tokens: Tensor, *, sample: Tensor | None = None, own: float
) -> Tensor:
    """`[M,T,N]` float64 rows of `(P + P^T) / 2` of `tokens` `[M,T]` of the samples `[M]`, or of all.

    `own` stands on the diagonal, 0 at padding.
    """
    assert problem.pairwise is not None
    if sample is None:
        sample = torch.arange(len(tokens), device=tokens.device)
    where = sample[:, None]
    rows = (problem.pairwise[where, tokens].double() + problem.pairwise[where, :, tokens].double()) / 2
    if problem.mask is not None:
        rows = rows.masked_fill(~problem.mask[sample][:, None, :], 0)
    return rows.scatter_(2, tokens[:, :, None], own)


def two_best(values: Tensor, *, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Largest along `dim`, its place (the lowest of equals), and the largest of the others, -inf without."""
    best, place = values.max(dim)
    rest = values.scatter(dim, place.unsqueeze(dim), -math.inf).amax(dim)
    return best, place, rest
