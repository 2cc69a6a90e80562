"""Columns: which of them hold what, and how removal and both position policies change them.

A column is a place in the token axis of a batch.  Removal keeps the order, drops leading padding, and
aligns rows at their last column, so `[:, -1]` means the same before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Segment:
    """The columns that decoder layers from `layer` on hold, until the next cut.

    `valid` `[B,W]` bool: real tokens.  `full`: every column of every row is real, known without looking.
    `rotary`: cos and sin of the columns (prefill only).  `following` `[B,1]`: position of the first decoded
    token under `compact`, else None.
    """

    layer: int
    valid: Tensor
    width: int
    full: bool
    rotary: tuple[Tensor, Tensor] | None = None
    following: Tensor | None = None

    def take_rows(self, rows: Tensor, batch: int) -> Segment:
        """The segment after its cache moved `rows` of `batch`; a row may stand for several beams."""

        def take(values: Tensor) -> Tensor:
            repeated = values.repeat_interleave(batch // len(values), dim=0)
            return repeated[rows.to(values.device)]

        following = None if self.following is None else take(self.following)
        return replace(self, valid=take(self.valid), following=following)


@dataclass
class CacheState:
    """What later steps must know of a pruned prompt.  It travels with the cache that the prompt filled."""

    columns: int
    segments: list[Segment] = field(default_factory=list)

    def at(self, layer: int) -> Segment | None:
        """The segment that `layer` works on, None before the first cut."""
        found = None
        for segment in self.segments:
            if segment.layer <= layer:
                found = segment
        return found

    def take_rows(self, rows: Tensor, batch: int) -> CacheState:
        """The state of a cache that held `batch` rows and now holds those named by `rows` (int64)."""
        return replace(self, segments=[segment.take_rows(rows, batch) for segment in self.segments])


def placed(values: list[int], device: torch.device) -> Tensor:
    """Host numbers as an int64 tensor on the device, without waiting for it."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def survivors(alive: Tensor, width: int) -> Tensor:
    """`[B,width]` int64: the alive columns of each row in order, right-aligned, dropped ones before them."""
    return alive.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]


def inverse(order: Tensor, columns: int) -> Tensor:
    """`[B,columns]`: where each old column went; arbitrary for dropped ones."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros(order.shape[0], columns, dtype=torch.int64, device=order.device).scatter_(
        1, order, places
    )


def emission(keep: Tensor, rank: Tensor | None, group: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`[B,width]` twice: the places of the kept tokens in order, and which kept token goes to each.

    Both index the tokens of `keep` `[B,N]`; rows that keep fewer than `width` end in dropped ones.  The
    places that a group (`group` `[B,N]`) holds are filled with its own tokens by ascending `rank` `[B,N]`,
    then index; without a rank every token stays in its place.
    """
    places = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    if rank is None:
        return places, places
    number = group.masked_fill(~keep, int(torch.iinfo(group.dtype).max))

    def by_group(order: Tensor) -> Tensor:
        return order.gather(1, number.gather(1, order).argsort(dim=1, stable=True))[:, :width]

    every = torch.arange(keep.shape[1], device=keep.device).expand_as(number)
    token = every.scatter(1, by_group(every), by_group(rank.argsort(dim=1, stable=True)))
    return places, token.gather(1, places)


def take_columns(values: Tensor, order: Tensor, dim: int = 1) -> Tensor:
    """Gather `values` `[B or 1, ..., L, ...]` along `dim` by `order` `[B,W]`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = order.shape
    sizes = list(values.shape)
    sizes[0], sizes[dim] = order.shape
    if values.shape[0] != order.shape[0]:
        values = values.expand(order.shape[0], *values.shape[1:])
    return values.gather(dim, order.view(shape).expand(sizes))


def take_rotary(rotary: tuple[Tensor, Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin `[B or 1, L, d]` of the columns in `order`."""
    cos, sin = rotary
    return take_columns(cos, order), take_columns(sin, order)


def compact_positions(positions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of survivors with all gaps closed, and the position that follows `[B,1]`.

    `positions` `[A,B,W]` with A axes (1, or 3 for M-RoPE).  Each value becomes its rank among all values in
    use in that row, over all axes: for one axis this is 0, 1, 2, ..., for M-RoPE it keeps the shape of the
    picture and closes rows and columns that nobody uses.  Invalid columns get 0.
    """
    axes, batch, width = positions.shape
    real = valid.expand(axes, batch, width).permute(1, 0, 2).reshape(batch, -1)
    flat = positions.permute(1, 0, 2).reshape(batch, -1)
    big = torch.iinfo(flat.dtype).max
    value, place = flat.masked_fill(~real, big).sort(dim=1)
    fresh = torch.ones_like(value)
    fresh[:, 0] = 0
    fresh[:, 1:] = (value[:, 1:] != value[:, :-1]).to(fresh.dtype)
    rank = torch.empty_like(flat).scatter_(1, place, fresh.cumsum(1))
    rank = rank.masked_fill(~real, 0)
    following = rank.amax(1, keepdim=True) + 1
    return rank.view(batch, axes, width).permute(1, 0, 2), following
