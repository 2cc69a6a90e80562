"""Columns: which of them hold what, and how removal changes that.

A column is a place in the token axis of a batch.  Removal keeps the order of places, drops leading padding,
and aligns rows at their last column, so `[:, -1]` means the same before and after.  Nothing here waits for
the device: how many tokens each row keeps is known on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.models.prompt import Prompt


@dataclass(frozen=True)
class Columns:
    """Which column of the sequence holds what.  `B` counts rows, `B'` those with visual tokens.

    Parameters
    ----------
    valid: `[B,W]` bool, real tokens.
    rows: the rows that hold visual tokens.  index: the same as `[B']` int64; None when every row does.
    place: `[B',N]` int64, columns of the visual tokens that may be removed, -1 at padding.
    origin: `[B',N]` int64, the columns they had in the unpruned prompt, -1 at padding.
    text: `[B',T]` int64, columns of the text after the first visual token, -1 at padding.
    last: `[B']` int64, column of the last real token.
    lengths: real tokens per row.  inner: padding columns per row that do not lead it.
    alive: tokens in `place` per row of `B'`.
    """

    valid: Tensor
    rows: tuple[int, ...]
    index: Tensor | None
    place: Tensor
    origin: Tensor
    text: Tensor
    last: Tensor
    lengths: tuple[int, ...]
    inner: tuple[int, ...]
    alive: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Prompt) -> Columns:
        """The columns of a prompt before any removal."""
        every = len(prompt.rows) == prompt.batch
        return cls(
            valid=prompt.real,
            rows=tuple(prompt.rows),
            index=None if every else placed(prompt.rows, prompt.place.device),
            place=prompt.place,
            origin=prompt.place,
            text=prompt.text,
            last=prompt.last,
            lengths=tuple(prompt.lengths),
            inner=tuple(prompt.inner),
            alive=tuple(prompt.started),
        )

    @property
    def width(self) -> int:
        return self.valid.shape[1]

    @property
    def mask(self) -> Tensor:
        """`[B',N]` bool, False at the padding of `place`."""
        return self.place >= 0

    @property
    def ragged(self) -> bool:
        return len(set(self.alive)) > 1

    @property
    def used(self) -> tuple[int, ...]:
        """Columns per row from its first real token on."""
        return tuple(n + pad for n, pad in zip(self.lengths, self.inner, strict=True))

    @property
    def full(self) -> bool:
        """Whether every column of every row is real, known without looking at a tensor."""
        return all(n == self.width for n in self.lengths)

    def pick(self, values: Tensor) -> Tensor:
        """Rows with visual tokens of `values` `[B or 1,...]`."""
        return values if self.index is None or values.shape[0] == 1 else values[self.index]

    def visual(self, values: Tensor) -> Tensor:
        """`[B,W,...]` to `[B',N,...]`; padding repeats column 0."""
        return take(self.pick(values), self.place.clamp_min(0))

    def texts(self, values: Tensor) -> Tensor:
        """`[B,W,...]` to `[B',T,...]`, zero at padding."""
        taken = take(self.pick(values), self.text.clamp_min(0))
        return taken.masked_fill((self.text < 0).view(*self.text.shape, *[1] * (taken.dim() - 2)), 0)

    def after(
        self, keep: Tensor, counts: Sequence[int], *, rank: Tensor | None = None, group: Tensor | None = None
    ) -> tuple[Columns, Move]:
        """The columns once the visual tokens outside `keep` are gone, and how tensors get there.

        Parameters
        ----------
        keep: `[B',N]` bool, False at padding.  counts: its sums per row.
        rank, group: `[B',N]`, see `emission`; None keeps the order, and takes all tokens for one group.
        """
        device, width = self.place.device, self.width
        leading = placed([width - n for n in self.used], device)
        gone = torch.zeros(self.place.shape[0], width + 1, dtype=torch.bool, device=device)
        gone.scatter_(1, self.place.masked_fill(~self.mask, width), ~keep)  # padding goes to a spare column
        stays = (torch.arange(width, device=device) >= leading[:, None]) & ~self._spread(gone[:, :width])

        lengths = list(self.lengths)
        for row, before, now in zip(self.rows, self.alive, counts, strict=True):
            lengths[row] += now - before
        new = replace(self, lengths=tuple(lengths), alive=tuple(counts))
        order = survivors(stays, max(new.used))
        leading = placed([order.shape[1] - n for n in new.used], device)
        inside = torch.arange(order.shape[1], device=device) >= leading[:, None]

        whole = torch.zeros_like(self.place) if group is None else group
        places, tokens = emission(keep, rank, group=whole, width=max(counts))
        real = torch.arange(tokens.shape[1], device=device) < placed(counts, device)[:, None]
        went = self.pick(inverse(order, width))  # old column to new one
        place = went.gather(1, self.place.clamp_min(0).gather(1, places))
        new = replace(
            new,
            valid=take(self.valid, order) & inside,
            place=place.masked_fill(~real, -1),
            origin=self.origin.gather(1, tokens).masked_fill(~real, -1),
            text=went.gather(1, self.text.clamp_min(0)).masked_fill(self.text < 0, -1),
            last=went.gather(1, self.last[:, None])[:, 0],
        )
        content = order
        if rank is not None:
            content = new.write(order, self.place.clamp_min(0).gather(1, tokens))
        return new, Move(order, content, tokens)

    def write(self, values: Tensor, visual: Tensor) -> Tensor:
        """`values` `[B,W,...]` with `visual` `[B',N,...]` written into the columns of `place`."""
        spare = torch.cat([values, values[:, :1]], 1)  # padding is written to a column that is cut off again
        where = self.place.masked_fill(~self.mask, self.width)
        index = where.view(*where.shape, *[1] * (values.dim() - 2)).expand_as(visual)
        found = self.pick(spare).scatter(1, index, visual)
        if self.index is not None:
            found = spare.index_copy(0, self.index, found)
        return found[:, :-1]

    def _spread(self, values: Tensor) -> Tensor:
        """`[B',W]` bool to `[B,W]`, False in rows without visual tokens."""
        if self.index is None:
            return values
        return torch.zeros_like(self.valid).index_copy(0, self.index, values)


@dataclass(frozen=True)
class Move:
    """How tensors follow a removal.

    order: `[B,W']` int64, the old column whose place a new column takes over (positions, padding).
    content: `[B,W']` int64, the old column whose token it holds: another one where tokens change order.
    tokens: `[B',K]` int64, which old visual token each new one is.
    """

    order: Tensor
    content: Tensor
    tokens: Tensor


def placed(values: Sequence[int], device: torch.device) -> Tensor:
    """Host numbers as an int64 tensor on the device, without waiting for it."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def survivors(alive: Tensor, width: int) -> Tensor:
    """`[B,width]` int64: the alive columns of each row in order, right-aligned, dropped ones before them."""
    return alive.to(torch.int8).argsort(dim=1, stable=True)[:, alive.shape[1] - width :]


def inverse(order: Tensor, columns: int) -> Tensor:
    """`[B,columns]`: where each old column went; 0 for dropped ones."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros(order.shape[0], columns, dtype=torch.int64, device=order.device).scatter_(
        1, order, places
    )


def emission(keep: Tensor, rank: Tensor | None, *, group: Tensor, width: int) -> tuple[Tensor, Tensor]:
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


def take(values: Tensor, order: Tensor, *, dim: int = 1) -> Tensor:
    """Gather `values` `[B or 1, ..., L, ...]` along `dim` by `order` `[B,W]`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = order.shape
    sizes = list(values.shape)
    sizes[0], sizes[dim] = order.shape
    if values.shape[0] != order.shape[0]:
        values = values.expand(order.shape[0], *values.shape[1:])
    return values.gather(dim, order.view(shape).expand(sizes))
