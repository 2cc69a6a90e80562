"""Facility location: every target is served by the kept token that is best for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing
from pruneopt.problems.kinds._serving import serving_bounds
from pruneopt.problems.kinds._streamed import largest_chosen, priced, rounded
from pruneopt.problems.kinds._swaps import Swaps, two_best
from pruneopt.problems.kinds._terms import pair_mask, unary_or
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


class FacilityLocation(Kind):
    """Sum over all targets of their largest gain from the choice.

    The targets are the tokens, which gain their `pairwise` similarity weighted by `unary` if given, and the
    external `anchors`, which gain minus what it costs to serve them; either may be missing.  Entry (n, s)
    is what n gains when s is chosen; the two directions may differ, and the diagonal counts.  Over a cost it
    is transport from k sources of any mass, at the least cost.
    """

    name: ClassVar[str] = "facility_location"
    pairs: ClassVar[str] = "kernels"
    serves: ClassVar[bool] = True
    scaled: ClassVar[frozenset[str]] = frozenset({"pairwise", "anchors"})
    greedy = {"kind": "lazy_greedy"}
    search = {"kind": "local_search"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        gain, weight = served(problem)
        best = gain.double().masked_fill(~keep[:, None, :], -math.inf).amax(2)
        return (best.masked_fill(weight == 0, 0) * weight).sum(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        found = self.bounds(problem, keep)
        return found if isinstance(found, str) else found.gather(1, problem.k[:, None] - 1).squeeze(1)

    def bounds(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """The Lagrangian bound (see `_serving`), with first prices around `keep`.

        It is never above the trivial bound, nor above that of Leskovec et al. 2007 around `keep`, which for
        the count of the problem is never worse than the 1 - 1/e of greedy.
        """
        if problem.unary is not None and bool((problem.unary.masked_fill(~problem.real, 0) < 0).any()):
            return "negative weights: the value is not submodular, so gains bound nothing"
        gain, weight = served(problem)
        worth = gain.double() * weight[:, :, None]
        best = worth.masked_fill(~problem.real[:, None, :], -math.inf).amax(2)
        first = worth.masked_fill(~(keep & problem.real)[:, None, :], -math.inf).amax(2)
        first = torch.where(first == -math.inf, best, first)  # nobody is chosen
        bounds = serving_bounds(worth, first, simplex=CappedSimplex.of(problem))
        return torch.minimum(best.sum(1)[:, None], bounds)

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        weight, others = unary_or(problem, 1.0), replace(problem, pairwise=None)
        best = largest_chosen(rows_of(problem.pairwise), keep)
        value = (best.masked_fill(weight == 0, 0) * weight).sum(1)
        return value if problem.anchors is None else value + self.value(others, keep)

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """The Lagrangian bound at what `keep` serves the targets for: that of Leskovec et al. 2007."""
        weight, real = unary_or(problem, 1.0), problem.real
        if bool((weight < 0).any()):
            return "negative weights: the value is not submodular, so gains bound nothing"
        price = largest_chosen(rows_of(problem.pairwise), keep & real).masked_fill(~real, 0)
        added, best = priced(rows_of(problem.pairwise), weight, price=price, real=real)
        least, most = (price * weight).sum(1), (best.masked_fill(~real, 0) * weight).sum(1)
        size = (best.abs().masked_fill(~real, 0) * weight).sum(1)
        if problem.anchors is not None:
            gain, there = served(replace(problem, pairwise=None))
            gain = gain.double()
            first = gain.masked_fill(~(keep & real)[:, None, :], -math.inf).amax(2)
            added = added + ((gain - first[:, :, None]).clamp_min(0) * there[:, :, None]).sum(1)
            top = gain.masked_fill(~real[:, None, :], -math.inf).amax(2)
            least, most = least + (first * there).sum(1), most + (top * there).sum(1)
        bound = least + CappedSimplex.of(problem).most(added)
        return rounded(torch.minimum(bound, most), size, like=rows_of(problem.pairwise).like)

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        gain, weight = served(problem)
        column = order.clamp_min(0)[:, None, :].expand(-1, gain.shape[1], -1)
        best = gain.gather(2, column).double().cummax(2).values
        best = best.diff(dim=2, prepend=torch.zeros_like(best[:, :, :1]))
        more = (best.masked_fill((weight == 0)[:, :, None], 0) * weight[:, :, None]).sum(1)
        return more.masked_fill(order < 0, math.nan)

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Servers(problem, keep)

    def check(self, problem: SubsetProblem) -> None:
        if problem.pairwise is None and problem.unary is not None:
            raise ProblemError(
                "unary weighs tokens that are served, and only anchors are; leave it out, or give pairwise"
            )

    def linear(self, problem: SubsetProblem) -> Program:
        """An entry for every way to serve a target; every target is served once, by a chosen token."""
        program = choosing(problem)
        gain, weight = (t[0].double().cpu().numpy() for t in served(problem))
        if (weight < 0).any():
            raise ProblemError("facility_location has negative weights; milp cannot assign")
        there = np.flatnonzero(weight)
        n, targets = program.tokens, len(there)
        i, j = (a.ravel() for a in np.indices((targets, n)))
        worth = gain[np.ix_(there, program.place)] * weight[there, None]
        y = program.extend(worth.ravel())
        for row in range(targets):
            program.centre(slice(n + row * n, n + (row + 1) * n), 1)
        program.add(i, y, values=1.0, low=np.ones(targets), high=np.ones(targets))
        one = np.ones(targets * n)
        rows, cols = np.concatenate([np.arange(targets * n)] * 2), np.concatenate([y, j])
        program.add(rows, cols, values=np.concatenate([one, -one]), low=-np.inf * one, high=0 * one)
        return program


class _Servers(Swaps):
    """The two best servers of every target; a swap counts anew only the targets whose servers it changes.

    Source: Whitaker 1983 (fast interchange); gains and losses kept apart after Resende and Werneck 2007.
    """

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        self.gain, self.weight = served(problem)
        batch, _, tokens = self.gain.shape
        self.column = self.gain.gather(2, self.slots[:, None, :].expand(-1, self.gain.shape[1], -1)).double()
        self.column.masked_fill_(~self.filled[:, None, :], -math.inf)
        self.best = two_best(self.column, dim=2)
        self.comes = self.weight.new_zeros(batch, tokens)
        self.goes = self.weight.new_zeros(batch, self.slots.shape[1], tokens)
        for number in range(batch):  # one sample at a time: [R,N] float64 at once
            self._count(torch.full_like(self.slots[0, :1], number), sign=1.0)

    def _count(self, sample: Tensor, *, sign: float, changed: Tensor | None = None) -> None:
        """Add what the targets `changed` `[M,R]` of samples `[M]` (or all) gain and lose, or take it away."""
        there = self.weight[sample] != 0
        number, target = (there if changed is None else there & changed).nonzero(as_tuple=True)
        number = sample[number]
        gain, weight = self.gain[number, target].double(), sign * self.weight[number, target][:, None]
        first, server, second = (part[number, target][:, None] for part in self.best)
        with_best = torch.maximum(gain, first)
        self.comes.index_add_(0, number, (with_best - first) * weight)
        lost = (torch.maximum(gain, second) - with_best) * weight
        self.goes.flatten(0, 1).index_add_(0, number * self.goes.shape[1] + server.squeeze(1), lost)

    def gains(self) -> Tensor:
        return self.comes[:, None, :] + self.goes

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        self.column[sample, :, slot] = self.gain[sample, :, into].double()
        after = two_best(self.column[sample], dim=2)
        same = [new == old[sample] for new, old in zip(after, self.best, strict=True)]
        changed = ~(same[0] & same[1] & same[2])
        self._count(sample, sign=-1.0, changed=changed)
        for new, old in zip(after, self.best, strict=True):
            old[sample] = new
        self._count(sample, sign=1.0, changed=changed)


def served(problem: SubsetProblem) -> tuple[Tensor, Tensor]:
    """What every target gains from every token, `[B,R,N]`, and its weight `[B,R]` float64, 0 if absent.

    Entries of absent targets and of padded tokens are 0; without padding tokens are not copied.
    """
    gains, weights = [], []
    if problem.pairwise is not None:
        whole = problem.mask is None
        gains.append(problem.pairwise if whole else problem.pairwise.masked_fill(~pair_mask(problem), 0))
        weights.append(unary_or(problem, 1.0))
    if problem.anchors is not None:
        entries = (problem.anchors < math.inf) & problem.real[:, None, :]
        gains.append(-problem.anchors.masked_fill(~entries, 0))
        weights.append(entries.any(2).double())
    if len(gains) == 1:
        return gains[0], weights[0]
    return torch.cat(gains, 1), torch.cat(weights, 1)
