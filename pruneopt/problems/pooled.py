"""Sums over groups of columns of a term by rows, and plans that treat the columns of a group alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.problems.row_sums import Mapped, Scaled, Total
from pruneopt.problems.rows import Beside, Gram, Index, Rows, Stored, ranges, take

SMALL = 2**18  # entries of a block of which copies stay in the cache
Groups = tuple[Tensor, Tensor, int]  # group `[B,M]` of each column, its weight `[B,M]`, how many groups


def small_blocks(term: Rows) -> Iterator[tuple[slice, Tensor]]:
    """`blocks` of a size at which float64 copies of one stay in the cache."""
    batch, tokens, width = term.shape
    step = max(1, SMALL // (batch * width))
    for part in ranges(tokens, step):
        yield part, term.block(part)


def without_rounding(squares: Tensor) -> Tensor:
    """Squares that rounding made negative are 0; a sum over many entries need not look at each of them."""
    return squares.clamp_min_(0)


def pooled(term: Rows, groups: Groups) -> Tensor:
    """`[B,N,K]` weighted sums of the columns of every group.

    Products of features, vectors and sums of both are pooled in their factors, O((N+M)KD); entries are read
    only where a function of every entry leaves no other way.
    """
    if isinstance(term, Total):
        found = [w * pooled(part, groups) for part, w in zip(term.terms, term.weights, strict=True)]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]
    if isinstance(term, Mapped) and term.function is without_rounding:
        return pooled(term.term, groups).clamp_min_(0)
    if isinstance(term, Gram):
        return torch.bmm(term.left, pool_rows(term.right, groups).transpose(1, 2))
    if isinstance(term, Beside):
        ones = pool_rows(torch.ones_like(term.v)[:, :, None], groups)
        others = pool_rows(term.v[:, :, None], groups)
        return term.u[:, :, None] * ones.transpose(1, 2) + others.transpose(1, 2)
    if isinstance(term, Scaled):
        ones = pool_rows(torch.ones_like(groups[1])[:, :, None].to(term.like.dtype), groups).transpose(1, 2)
        scale = term.scale[:, None, None]
        inside = pooled(term.term, groups) - term.shift[:, None, None] * ones
        return torch.where(scale != 0, inside / torch.where(scale != 0, scale, 1), 0.0)
    if isinstance(term, Stored):
        return pool_rows(term.matrix.transpose(1, 2), groups).transpose(1, 2)
    label, weight, count = groups
    total = term.like.new_zeros(term.shape[0], count, term.shape[1])
    for part, entries in term.turned().blocks():
        total += pool_rows(entries, (label[:, part], weight[:, part], count))
    return total.transpose(1, 2)


def pool_rows(values: Tensor, groups: Groups) -> Tensor:
    """`[B,K,D]` weighted sums of the rows of `values` `[B,M,D]` in every group."""
    label, weight, count = groups
    batch, _, width = values.shape
    place = label + count * torch.arange(batch, device=label.device)[:, None]
    weighted = values * weight[:, :, None].to(values.dtype)
    out = values.new_zeros(batch * count, width)
    return out.index_add_(0, place.flatten(), weighted.flatten(0, 1)).view(batch, count, width)


@dataclass(frozen=True, eq=False)
class Shared(Rows):
    """A plan `left_il share_j`, l the group of column j: what goes to a group is shared out among it.

    Parameters
    ----------
    left
        `[B,N,K]` mass from each row to each group.
    label
        `[B,M]` group of each column.
    share
        `[B,M]` share of each column in its group; they sum to one over the group.
    """

    left: Tensor
    label: Tensor
    share: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.left.shape[0], self.left.shape[1], self.label.shape[1]

    @property
    def like(self) -> Tensor:
        return self.left

    @property
    def symmetric(self) -> bool:
        return False

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        left, label, share = take(self.left, rows), take(self.label, cols), take(self.share, cols)
        found = torch.stack([part[:, group] for part, group in zip(left, label, strict=True)])
        return found.mul_(share[:, None, :])

    def own(self) -> Tensor:
        return self.left.gather(2, self.label[:, :, None]).squeeze(2) * self.share

    def turned(self) -> Rows:
        return Gram(self._members(), self.left)

    def product(self, x: Tensor) -> Tensor:
        groups = (self.label, self.share * x, self.left.shape[2])
        total = pool_rows(torch.ones_like(self.share)[:, :, None], groups)
        return torch.bmm(self.left, total).squeeze(2).to(x.dtype)

    def _members(self) -> Tensor:
        hot = torch.nn.functional.one_hot(self.label, self.left.shape[2])
        return hot.to(self.share.dtype) * self.share[:, :, None]


@dataclass(frozen=True, eq=False)
class Gibbs(Rows):
    """A plan `exp((f_i + g_j - C_ij) / eps)` over a cost by rows; minus infinity is an atom without mass.

    Parameters
    ----------
    cost
        The term C.
    f, g
        `[B,N]` and `[B,M]`.
    eps
        `[B]`.
    """

    cost: Rows
    f: Tensor
    g: Tensor
    eps: Tensor

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        beside = Beside(self.f, self.g).block(rows, cols)
        return beside.sub_(self.cost.block(rows, cols)).div_(self.eps[:, None, None]).exp_()

    def product(self, x: Tensor) -> Tensor:
        parts = [torch.bmm(p.to(x.dtype), x[:, :, None]).squeeze(2) for _, p in small_blocks(self)]
        return torch.cat(parts, 1)

    def own(self) -> Tensor:
        return ((self.f + self.g - self.cost.own()) / self.eps[:, None]).exp()

    def turned(self) -> Rows:
        return Gibbs(self.cost.turned(), self.g, self.f, self.eps)

    def inputs(self) -> Iterator[Tensor]:
        return self.cost.inputs()
