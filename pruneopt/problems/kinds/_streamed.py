"""Values and bounds of problems whose pairwise term is read by rows: what is read is linear in the tokens.

Entries are those of the dtype of the features, so a bound holds up to their rounding, which is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._swaps import chosen_first
from pruneopt.problems.row_sums import Mapped
from pruneopt.problems.rows import BLOCK, Rows
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem

ROUNDINGS = 16  # of the largest entry, for what two ways to compute the same entry may differ by


def over_blocks(term: Rows, cols: Tensor, *, read: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`[B,N]` of what `read` makes of all rows at some columns `[B,m]`, a block `[B,n,m]` at a time."""
    return torch.cat([read(term.block(part, cols), part) for part in term.parts(cols.shape[1])], 1)


def largest_chosen(term: Rows, keep: Tensor) -> Tensor:
    """`[B,N]` float64 largest entry of every row at the chosen columns; -inf where there is none."""
    order, inside = chosen_first(keep, _most(keep))
    outside = ~inside[:, None]
    return over_blocks(term, order, read=lambda e, _: e.masked_fill_(outside, -math.inf).amax(2)).double()


def smallest_chosen(term: Rows, keep: Tensor) -> Tensor:
    """`[B,N]` float64 smallest entry of every row at the chosen columns, at least 0; +inf where none is."""
    return -largest_chosen(Mapped(term, torch.neg), keep).clamp_max(0)


def rounded(bound: Tensor, size: Tensor, *, like: Tensor) -> Tensor:
    """`bound` and the rounding of entries of some size."""
    return bound + ROUNDINGS * torch.finfo(like.dtype).eps * size


def chosen_part(problem: SubsetProblem, keep: Tensor) -> tuple[SubsetProblem, Tensor]:
    """The problem of the chosen tokens alone, with a matrix, and the choice of all of them."""
    order, inside = chosen_first(keep, _most(keep))
    terms: dict[str, Any] = {"pairwise": rows_of(problem.pairwise).block(order, order), "mask": inside}
    for name in ("unary", "anchors"):
        term = getattr(problem, name)
        if term is not None:
            index = order if term.dim() == 2 else order[:, None, :].expand(-1, term.shape[1], -1)
            terms[name] = term.gather(-1, index)
    return replace(problem, k=inside.sum(1), counts=None, protected=None, **terms), inside


def same_group_bound(problem: SubsetProblem, term: Rows, *, keep: Tensor) -> Tensor:
    """`[B]` float64: of any k tokens two are in one of k - 1 groups, so none are farther apart than that.

    The groups are those of the tokens nearest to all tokens of `keep` but one of its closest pair, and what
    is read is a square a group.  No triangle inequality is needed; where there is one, a group is at most
    twice as wide as the next pick of a farthest-point walk is far.  +inf for a single token.
    """
    each = [slice(b, b + 1) for b in range(len(keep))]
    every = [_widest_group(problem.sample(b.start), term.samples(b), keep=keep[b.start]) for b in each]
    return torch.stack(every)


def _widest_group(problem: SubsetProblem, term: Rows, *, keep: Tensor) -> Tensor:
    widest = torch.tensor(math.inf, dtype=torch.float64, device=keep.device)
    if int(problem.k[0]) == 1:
        return widest
    centres = keep.nonzero().squeeze(1)
    if len(centres) >= int(problem.k[0]):
        among = term.block(centres[None], centres[None])[0]
        among.diagonal().fill_(math.inf)
        centres = centres[torch.arange(len(centres), device=centres.device) != among.amin(1).argmin()]
    group = over_blocks(term, centres[None], read=lambda entries, _: entries.argmin(2))[0]
    group[centres] = torch.arange(len(centres), device=centres.device)
    real = problem.real[0].nonzero().squeeze(1)
    counts = group[real].bincount(minlength=len(centres)).tolist()
    widest = -widest
    for tokens in real[group[real].argsort(stable=True)].split(counts):
        step = max(1, BLOCK // (max(1, len(tokens)) * term.like.itemsize))
        for some in tokens.split(step):
            apart = term.block(some[None], tokens[None])[0].masked_fill_(some[:, None] == tokens, -math.inf)
            widest = torch.maximum(widest, apart.amax().double())
    return rounded(widest, widest.abs(), like=term.like)


def star_bound(problem: SubsetProblem, term: Rows, *, own: Tensor) -> Tensor:
    """`[B]` float64: a chosen token adds at most its own worth and half of its k - 1 largest distances."""
    most = int(problem.k.max()) - 1
    stars, size = [], torch.zeros_like(own[:, 0])
    counts = torch.arange(max(most, 0), device=own.device) < problem.k[:, None] - 1
    for part, entries in term.blocks():
        place = torch.arange(entries.shape[1], device=own.device)
        entries = entries.masked_fill(~problem.real[:, None, :], -math.inf)
        entries[:, place, place + part.start] = -math.inf
        top = entries.topk(most, dim=2).values.double()
        stars.append(top.masked_fill(~counts[:, None, :] | (top == -math.inf), 0).sum(2))
        size = torch.maximum(size, top.masked_fill(top == -math.inf, 0).abs().amax((1, 2)) if most else size)
    best = CappedSimplex.of(problem).most(own + torch.cat(stars, 1) / 2)
    return rounded(best, problem.k.square() * size, like=term.like)


def negative_type_bound(problem: SubsetProblem, term: Rows, *, own: Tensor, rounds: int = 20) -> Tensor:
    """`[B]` float64: the concave quadratic bound of max-sum (see `_concave_quadratic`) from products.

    A term of negative type is concave along `sum x = k` as it is, but for a diagonal below zero.
    """
    simplex, diagonal = CappedSimplex.of(problem), term.own().double().masked_fill(~problem.real, 0)
    shift = (-diagonal).clamp_min(0).amax(1, keepdim=True)

    def tangent(x: Tensor) -> tuple[Tensor, Tensor]:
        bent = term.product(x) - (diagonal + shift) * x
        straight = own + shift / 2
        value = (x * (bent / 2 + straight)).sum(1)
        return value, (bent + straight).masked_fill(~problem.real, 0)

    size = term.product(problem.real.double()).abs().amax(1) / problem.real.sum(1)
    size = problem.k.square() * (size + shift[:, 0])
    return rounded(simplex.certify(tangent, rounds), size, like=term.like)


def shared_server_bound(problem: SubsetProblem, term: Rows, *, near: Tensor, keep: Tensor) -> Tensor:
    """`[B]` float64 radius that no choice falls below: of `free + 1` tokens two share a server.

    Tokens are `keep` with the one that it serves worst; two of them share a server s at no less than the
    second smallest of what they pay at s.  `near` `[B,N]` is what serving from outside costs.
    """
    real = problem.real
    forced = torch.zeros_like(real) if problem.protected is None else problem.protected & real
    free = problem.k - forced.sum(1)
    nearest = torch.minimum(smallest_chosen(term, keep), near)
    nearest = nearest.masked_fill(keep, 0).masked_fill(~real, -1)
    members = (keep & real & ~forced).scatter(1, nearest.argmax(1, keepdim=True), True)
    order, inside = chosen_first(members, _most(members))
    if order.shape[1] < 2:
        return torch.zeros_like(near[:, 0])

    def second(entries: Tensor, part: slice) -> Tensor:
        place = torch.arange(real.shape[1], device=real.device)[part]
        entries = entries.clamp_min_(0).masked_fill_(~inside[:, None], math.inf)
        entries.masked_fill_(place[None, :, None] == order[:, None, :], 0)
        return entries.topk(2, dim=2, largest=False).values[:, :, 1]

    shared = over_blocks(term.turned(), order, read=second).double().masked_fill(~real, math.inf).amin(1)
    outside = near.gather(1, order).masked_fill(~inside, math.inf).amin(1)
    low = torch.minimum(shared, outside)
    low = low.masked_fill((members.sum(1) <= free) | ~low.isfinite(), 0)
    return rounded(low, -low, like=term.like).clamp_min(0)


def priced(term: Rows, weight: Tensor, *, price: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What every token `[B,N]` float64 adds to prices `[B,N]` of being served, and the best of each target.

    No choice of k tokens serves all targets, of some `weight` `[B,N]`, for more than the prices and the k
    largest additions: the Lagrangian bound of `_serving` at one point.
    """
    added, best = torch.zeros_like(weight), []
    for part, entries in term.blocks():
        best.append(entries.masked_fill(~real[:, None, :], -math.inf).amax(2).double())
        more = (entries - price[:, part, None].to(entries.dtype)).clamp_min_(0)
        added += torch.bmm(weight[:, None, part].to(more.dtype), more).squeeze(1).double()
    return added, torch.cat(best, 1)


def _most(keep: Tensor) -> int:
    return max(1, int(keep.sum(1).max()))
