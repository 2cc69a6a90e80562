"""Pairwise terms made of other terms, a few rows at a time: functions of entries, sums, a raised diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.problems.rows import Beside, Index, Rows, with_own


@dataclass(frozen=True, eq=False)
class Mapped(Rows):
    """A function of every entry of a term, one by one; it may write into what it is given.

    `definite` and `negative_type` are said by whoever knows the function.
    """

    term: Rows
    function: Callable[[Tensor], Tensor]
    is_definite: bool = False
    is_negative_type: bool = False

    @property
    def definite(self) -> bool:
        return self.is_definite

    @property
    def negative_type(self) -> bool:
        return self.is_negative_type

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return self.function(self.term.block(rows, cols))

    def own(self) -> Tensor:
        return self.function(self.term.own().clone())

    def turned(self) -> Rows:
        return replace(self, term=self.term.turned())


@dataclass(frozen=True, eq=False)
class Scaled(Rows):
    """`(P_ij - shift) / scale` with numbers `[B]` of every sample; zero where the scale is zero."""

    term: Rows
    shift: Tensor
    scale: Tensor

    @property
    def negative_type(self) -> bool:
        return self.term.negative_type and bool((self.scale >= 0).all())

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return self._scaled(self.term.block(rows, cols))

    def own(self) -> Tensor:
        return self._scaled(self.term.own())

    def turned(self) -> Rows:
        return replace(self, term=self.term.turned())

    def product(self, x: Tensor) -> Tensor:
        shift, scale = (t.to(x.dtype)[:, None] for t in (self.shift, self.scale))
        found = self.term.product(x) - shift * x.sum(1, keepdim=True)
        return torch.where(scale != 0, found / torch.where(scale != 0, scale, 1), 0.0)

    def inputs(self) -> Iterator[Tensor]:
        return self.term.inputs()

    def _scaled(self, entries: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (entries.dim() - 1)
        shift, scale = self.shift.view(shape), self.scale.view(shape)
        return torch.where(scale != 0, (entries - shift) / torch.where(scale != 0, scale, 1), 0.0)


@dataclass(frozen=True, eq=False)
class Total(Rows):
    """A weighted sum of terms."""

    terms: tuple[Rows, ...]
    weights: tuple[float, ...]

    @property
    def definite(self) -> bool:
        return all(w >= 0 and t.definite for t, w in self._pairs())

    @property
    def negative_type(self) -> bool:
        return all(t.negative_type if w >= 0 else t.definite or _flat(t) for t, w in self._pairs())

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return self._sum(term.block(rows, cols) for term in self.terms)

    def own(self) -> Tensor:
        return self._sum(term.own().clone() for term in self.terms)

    def turned(self) -> Rows:
        return replace(self, terms=tuple(term.turned() for term in self.terms))

    def product(self, x: Tensor) -> Tensor:
        return self._sum(term.product(x) for term in self.terms)

    def factor(self) -> tuple[Tensor, Tensor] | None:
        found = [(term.factor(), weight) for term, weight in self._pairs()]
        known = [(*part, weight) for part, weight in found if part is not None and weight >= 0]
        if len(known) < len(found):
            return None
        rest = torch.stack([rest * weight for _, rest, weight in known]).sum(0)
        return torch.cat([rows * weight**0.5 for rows, _, weight in known], 2), rest

    def _pairs(self) -> Iterator[tuple[Rows, float]]:
        return zip(self.terms, self.weights, strict=True)

    def _sum(self, parts: Iterator[Tensor]) -> Tensor:
        """Every product is rounded before it is added, as in the matrix."""
        total: Tensor | None = None
        for part, weight in zip(parts, self.weights, strict=True):
            part = part if weight == 1 else part.mul_(weight)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


@dataclass(frozen=True, eq=False)
class Averaged(Rows):
    """The mean of a square term and the term turned."""

    term: Rows

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def definite(self) -> bool:
        return self.term.definite

    @property
    def negative_type(self) -> bool:
        return self.term.negative_type

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        return self.term.block(rows, cols).add_(self.term.turned().block(rows, cols)).div_(2)

    def own(self) -> Tensor:
        return self.term.own()

    def turned(self) -> Rows:
        return self

    def product(self, x: Tensor) -> Tensor:
        return (self.term.product(x) + self.term.turned().product(x)) / 2


@dataclass(frozen=True, eq=False)
class Raised(Rows):
    """A square term with a number added to its diagonal."""

    term: Rows
    by: float

    @property
    def definite(self) -> bool:
        return self.term.definite and self.by >= 0

    def block(self, rows: Index, cols: Index = slice(None)) -> Tensor:
        found = self.term.block(rows, cols)
        return with_own(found, rows, cols=cols, change=lambda own: own + self.by)

    def own(self) -> Tensor:
        return self.term.own() + self.by

    def turned(self) -> Rows:
        return replace(self, term=self.term.turned())

    def product(self, x: Tensor) -> Tensor:
        return self.term.product(x) + self.by * x

    def factor(self) -> tuple[Tensor, Tensor] | None:
        found = self.term.factor()
        return None if found is None or self.by < 0 else (found[0], found[1] + self.by)


def averaged(term: Rows) -> Rows:
    """Both directions of a square term averaged; the term itself where they are the same."""
    return term if term.symmetric else Averaged(term)


def _flat(term: Rows) -> bool:
    """Whether `x^T P x` is zero for all x that sum to zero."""
    return isinstance(term, Beside)
