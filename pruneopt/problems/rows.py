"""Pairwise terms that are computed a few rows at a time, from features, and never stored as a whole.

Products of features and vectors beside them; `row_sums.py` has what is made of such terms: functions of
entries, sums, a raised diagonal.
Entries come out of the same operations, in the same order, as those of the matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pruneopt.tensors import take_rows

R = TypeVar("R", bound="Rows")
BLOCK = 2**26  # bytes of rows that are read at once: above 2**25 glibc hands freed memory back
Index = Tensor | slice  # places `[B,n]` int64, or the same range in every sample


@dataclass(frozen=True, eq=False)
class Rows(ABC):
    """A term `[B,N,M]` whose rows are computed when they are asked for.

    The fields of a subclass are what it is computed from: tensors with a leading batch axis and a token axis
    behind it, other terms, plain numbers.
    """

    @abstractmethod
    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        """`[B,n,m]` entries of some rows and columns, in memory of their own."""

    @abstractmethod
    def own(self) -> Tensor:
        """`[B,N]` the diagonal of a square term."""

    @abstractmethod
    def turned(self) -> Rows:
        """The term with rows and columns exchanged."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(B, N, M)`."""
        return self._first().shape

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device of the entries."""
        return self._first().like

    @property
    def symmetric(self) -> bool:
        """Whether entries (i, j) and (j, i) are the same by construction."""
        return all(term.symmetric for term in self._terms())

    @property
    def definite(self) -> bool:
        """Whether it is positive semi-definite by construction."""
        return False

    @property
    def negative_type(self) -> bool:
        """Whether `x^T P x <= 0` for all x that sum to zero, by construction."""
        return False

    def row(self, pick: Tensor) -> Tensor:
        """`[B,M]` one row a sample, at `pick` `[B]`."""
        return self.block(pick[:, None])[:, 0]

    def product(self, x: Tensor) -> Tensor:
        """`[B,N]` products with vectors `x` `[B,M]`, in their dtype; reads all entries unless it need not."""
        found = [torch.bmm(part.to(x.dtype), x[:, :, None]).squeeze(2) for _, part in self.blocks()]
        return torch.cat(found, 1)

    def sums(self, real: Tensor | None = None) -> Tensor:
        """`[B,N]` float64 sums of the entries of every row, of those at `real` `[B,M]` where it is given."""
        batch, _, width = self.shape
        ones = self.like.new_ones(batch, width, dtype=torch.float64)
        return self.product(ones if real is None else ones * real)

    def factor(self) -> tuple[Tensor, Tensor] | None:
        """A `[B,N,R]` and d `[B,N]` >= 0, float64, of a term equal to `A A^T + diag(d)`, where known."""
        return None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, a block of them at a time: their range, and `[B,n,M]`, not to be written into."""
        for part in self.parts():
            yield part, self.block(part)

    def parts(self, width: int | None = None) -> Iterator[slice]:
        """Ranges of all rows, of which `width` (all) columns fill a block."""
        batch, tokens, every = self.shape
        step = max(1, BLOCK // (batch * (width or every) * self.like.itemsize))
        return ranges(tokens, step)

    def dense(self) -> Tensor:
        """`[B,N,M]` the whole term, not to be written into."""
        return self.block(slice(None))

    def inputs(self) -> Iterator[Tensor]:
        """The tensors that it is computed from."""
        for item in self._values():
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, Rows):
                yield from item.inputs()

    def samples(self: R, which: slice) -> R:
        """The term of some samples."""

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[which]
            if isinstance(value, Rows):
                return value.samples(which)
            return tuple(map(taken, value)) if isinstance(value, tuple) else value

        return replace(self, **{f.name: taken(getattr(self, f.name)) for f in fields(self)})

    def _values(self) -> Iterator[Any]:
        for item in fields(self):
            value = getattr(self, item.name)
            yield from value if isinstance(value, tuple) else (value,)

    def _terms(self) -> list[Rows]:
        return [value for value in self._values() if isinstance(value, Rows)]

    def _first(self) -> Rows:
        return self._terms()[0]


@dataclass(frozen=True, eq=False)
class Stored(Rows):
    """A matrix `[B,N,M]` that is there already."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, tokens, width = self.matrix.shape
        return batch, tokens, width

    @property
    def like(self) -> Tensor:
        return self.matrix

    @property
    def symmetric(self) -> bool:
        return False  # nobody has looked

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return take(take(self.matrix, rows).transpose(1, 2), cols).transpose(1, 2).clone()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        batch, tokens, width = self.shape
        step = max(64, 2**19 // (batch * width))
        for part in ranges(tokens, step):
            yield part, self.matrix[:, part]

    def sums(self, real: Tensor | None = None) -> Tensor:
        clean = self.matrix if real is None else self.matrix.masked_fill(~real[:, None, :], 0)
        return clean.sum(2, dtype=torch.float64)

    def dense(self) -> Tensor:
        return self.matrix

    def row(self, pick: Tensor) -> Tensor:
        return self.matrix[torch.arange(len(pick), device=pick.device), pick]

    def own(self) -> Tensor:
        return self.matrix.diagonal(dim1=1, dim2=2)

    def turned(self) -> Rows:
        return Stored(self.matrix.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class Gram(Rows):
    """Inner products of rows `[B,N,D]` with `others` `[B,M,D]`, by default with themselves."""

    left: Tensor
    others: Tensor | None = None

    @property
    def right(self) -> Tensor:
        return self.left if self.others is None else self.others

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.left.shape[0], self.left.shape[1], self.right.shape[1]

    @property
    def like(self) -> Tensor:
        return self.left

    @property
    def symmetric(self) -> bool:
        return self.others is None

    @property
    def definite(self) -> bool:
        return self.others is None

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        left, right = take(self.left, rows), take(self.right, cols)
        if left.shape[1] == 1 and left.device.type == "cpu":  # a product with one vector, the fast way
            return torch.stack([torch.mv(r, x[0]) for r, x in zip(right, left, strict=True)])[:, None]
        return torch.bmm(left, right.transpose(1, 2))

    def own(self) -> Tensor:
        return torch.einsum("bnd,bnd->bn", self.left, self.right)

    def turned(self) -> Rows:
        return self if self.others is None else Gram(self.others, self.left)

    def product(self, x: Tensor) -> Tensor:
        inner = x.new_zeros(len(x), 1, self.left.shape[2])
        for part, some in _chunks(self.right, x.dtype):
            inner += torch.bmm(x[:, None, part], some)
        found = [torch.bmm(some, inner.transpose(1, 2)) for _, some in _chunks(self.left, x.dtype)]
        return torch.cat(found, 1).squeeze(2)

    def factor(self) -> tuple[Tensor, Tensor] | None:
        rest = self.left.new_zeros(self.left.shape[:2], dtype=torch.float64)
        return (self.left.double(), rest) if self.others is None else None


@dataclass(frozen=True, eq=False)
class Cosines(Gram):
    """Inner products of vectors of length one or zero, with that on the diagonal whatever rounding gives."""

    def own(self) -> Tensor:
        return super().own().round()

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return with_own(super().block(rows, cols), rows, cols=cols, change=torch.round)


@dataclass(frozen=True, eq=False)
class Beside(Rows):
    """`u_i + v_j` of two vectors `[B,N]` and `[B,M]`; `others` is `u` itself where it is None."""

    u: Tensor
    others: Tensor | None = None

    @property
    def v(self) -> Tensor:
        return self.u if self.others is None else self.others

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.u.shape[0], self.u.shape[1], self.v.shape[1]

    @property
    def like(self) -> Tensor:
        return self.u

    @property
    def symmetric(self) -> bool:
        return self.others is None

    @property
    def negative_type(self) -> bool:
        return True

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return take(self.u, rows)[:, :, None] + take(self.v, cols)[:, None, :]

    def own(self) -> Tensor:
        return self.u + self.v

    def turned(self) -> Rows:
        return self if self.others is None else Beside(self.others, self.u)

    def product(self, x: Tensor) -> Tensor:
        return self.u.to(x.dtype) * x.sum(1, keepdim=True) + (self.v.to(x.dtype) * x).sum(1, keepdim=True)


def constant(value: float, term: Rows) -> Beside:
    """The same number everywhere, for tokens of a square term; halves of a number add up exactly."""
    return Beside(term.like.new_full((1, 1), value / 2).expand(term.shape[:2]))


def ranges(tokens: int, step: int) -> Iterator[slice]:
    """All places below `tokens`, `step` of them at a time."""
    for first in range(0, tokens, step):
        yield slice(first, min(first + step, tokens))


def _chunks(features: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Features in another dtype, some tokens at a time."""
    batch, tokens, width = features.shape
    step = max(1, BLOCK // (batch * width * 8))
    for part in ranges(tokens, step):
        yield part, features[:, part].to(dtype)


def with_own(found: Tensor, rows: Index, *, cols: Index, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A block, in which the entries of a token with itself are changed in place."""
    if isinstance(cols, slice) and cols == slice(None):
        if isinstance(rows, slice):
            own = found.diagonal(rows.start or 0, 1, 2)
            own.copy_(change(own))
        else:
            found.scatter_(2, rows[:, :, None], change(found.gather(2, rows[:, :, None])))
        return found
    i, j = _places(rows, found), _places(cols, found)
    return torch.where(i[:, :, None] == j[:, None, :], change(found), found)


def _places(index: Index, found: Tensor) -> Tensor:
    if isinstance(index, Tensor):
        return index
    return torch.arange(index.start or 0, index.stop, device=found.device)[None]


def take(values: Tensor, index: Index) -> Tensor:
    """Entries of `[B,N]`, or rows of `[B,N,D]`, at an index."""
    if isinstance(index, slice):
        return values[:, index]
    return values.gather(1, index) if values.dim() == 2 else take_rows(values, index)
