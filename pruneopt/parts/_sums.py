"""Sums of parts: each is called on what it needs, scaled, weighted and added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.errors import ProblemError, SignalError, SpecError
from pruneopt.parts._nested import Weighted
from pruneopt.problems.row_sums import Scaled, Total
from pruneopt.problems.rows import Beside, Rows
from pruneopt.signals import Signals
from pruneopt.tensors import normalize

_NO_SUMMAND = "every summand has weight 0; give at least one a weight"


def combine(summands: Sequence[Weighted], signals: Signals, *, pairwise: bool) -> Tensor | None:
    """Weighted sum of parts, `[B,N]`, or `[B,N,M]` with unary cost terms broadcast over targets.

    A weight of zero removes its summand exactly: the part is not even called.
    """
    total: Tensor | None = None
    for summand in summands:
        if summand.weight == 0:
            continue
        out = summand.part(signals.view(summand.part.needs))  # type: ignore[operator]
        wanted = 3 if pairwise and getattr(summand.part, "shape", "pairwise") == "pairwise" else 2
        if out.dim() != wanted or out.shape[:2] != (signals.batch, signals.tokens):
            raise SignalError(
                f"{summand.part.name} returned shape {list(out.shape)} for B={signals.batch}, "
                f"N={signals.tokens}"
            )
        out = normalize(out.float() if out.dtype.itemsize < 4 else out, summand.normalize, mask=signals.mask)
        out = out[:, :, None] if pairwise and out.dim() == 2 else out
        out = out if summand.weight == 1 else out * summand.weight
        total = out if total is None else total + out
    if total is not None and pairwise and total.shape[2] == 1:
        total = total.expand(-1, -1, signals.tokens)
    return total


def added(summands: Sequence[Weighted], signals: Signals, *, pairwise: bool) -> Tensor:
    """The same where there must be a sum. Raises SpecError when every weight is 0."""
    total = combine(summands, signals, pairwise=pairwise)
    if total is None:
        raise SpecError(_NO_SUMMAND)
    return total


def combine_rows(summands: Sequence[Weighted], signals: Signals) -> Rows | None:
    """`combine` of pairwise terms to be read a few rows at a time."""
    found = [(_rows(s, signals), s.weight) for s in summands if s.weight != 0]
    if not found:
        return None
    terms, weights = zip(*found, strict=True)
    return terms[0] if weights == (1,) else Total(terms, weights)


def added_rows(summands: Sequence[Weighted], signals: Signals) -> Rows:
    """The same where there must be a sum. Raises SpecError when every weight is 0."""
    total = combine_rows(summands, signals)
    if total is None:
        raise SpecError(_NO_SUMMAND)
    return total


def _rows(summand: Weighted, signals: Signals) -> Rows:
    if getattr(summand.part, "shape", "pairwise") == "pairwise":
        view = signals.view(summand.part.needs)
        return scaled_rows(summand.part.by_rows(view), summand.normalize, mask=signals.mask)  # type: ignore[attr-defined]
    own = combine([replace(summand, weight=1.0)], signals, pairwise=False)
    assert own is not None
    return Beside(own, torch.zeros_like(own))


def scaled_rows(term: Rows, how: str, *, mask: Tensor) -> Rows:
    """`normalize` of a pairwise term, with the sums over its real entries taken block by block.

    Raises ProblemError for a softmax over all pairs.
    """
    if how == "none":
        return term
    if how == "softmax":
        raise ProblemError(
            "normalize: softmax weighs all pairs of a sample against each other, and here are too many "
            "tokens for a matrix; use minmax, max, sum, l2 or zscore"
        )
    found = _Moments.of(term, mask)
    shift = torch.zeros_like(found.low)
    if how == "sum":
        scale = found.total
    elif how == "max":
        scale = torch.maximum(found.high, -found.low)
    elif how == "l2":
        scale = found.squares.sqrt()
    elif how == "zscore":
        shift = found.total / found.count.clamp_min(1)
        scale = (_Moments.of(term, mask, around=shift).squares / found.count.clamp_min(1)).sqrt()
    else:
        shift, scale = found.low, found.high - found.low
    return Scaled(term, shift.to(term.like.dtype), scale.to(term.like.dtype))


@dataclass(frozen=True)
class _Moments:
    """`[B]` float64 each: what scaling needs of the real entries of a square term."""

    low: Tensor
    high: Tensor
    total: Tensor
    squares: Tensor
    count: Tensor

    @staticmethod
    def of(term: Rows, mask: Tensor, *, around: Tensor | None = None) -> _Moments:
        """Squares are of what is left once `around` `[B]` is taken away."""
        low = torch.full((len(mask),), torch.inf, dtype=torch.float64, device=mask.device)
        high, total, squares = -low, torch.zeros_like(low), torch.zeros_like(low)
        for part, entries in term.blocks():
            real = mask[:, part, None] & mask[:, None, :]
            low = low.minimum(entries.masked_fill(~real, torch.inf).amin((1, 2)))
            high = high.maximum(entries.masked_fill(~real, -torch.inf).amax((1, 2)))
            total = total + entries.masked_fill(~real, 0).sum((1, 2), dtype=torch.float64)
            if around is not None:
                entries = entries - around.to(entries.dtype)[:, None, None]
            clean = entries.masked_fill(~real, 0)
            squares = squares + clean.square_().sum((1, 2), dtype=torch.float64)
        return _Moments(low, high, total, squares, mask.sum(1).double().square())


def combine_anchors(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """Anchor rows of all summands stacked: `[B,A,N]`, weights applied; a weight of zero removes its rows."""
    rows = [s.part(signals.view(s.part.needs)).float() * s.weight for s in summands if s.weight]  # type: ignore[operator]
    return torch.cat(rows, 1) if rows else None


def anchor_strength(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """How strong each stacked anchor is, `[B,A]`, where every summand says so; else None."""
    rows = [s.part.strength(signals.view(s.part.needs)) for s in summands if s.weight]  # type: ignore[attr-defined]
    known = [row for row in rows if row is not None]
    return torch.cat(known, 1) if known and len(known) == len(rows) else None
