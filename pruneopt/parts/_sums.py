"""Sums of parts: each is called on what it needs, scaled, weighted and added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruneopt.errors import SignalError, SpecError
from pruneopt.parts._nested import Weighted
from pruneopt.signals import Signals
from pruneopt.tensors import normalize


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
        raise SpecError("every summand has weight 0; give at least one a weight")
    return total


def combine_anchors(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """Anchor rows of all summands stacked: `[B,A,N]`, weights applied; a weight of zero removes its rows."""
    rows = [s.part(signals.view(s.part.needs)).float() * s.weight for s in summands if s.weight]  # type: ignore[operator]
    return torch.cat(rows, 1) if rows else None


def anchor_strength(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """How strong each stacked anchor is, `[B,A]`, where every summand says so; else None."""
    rows = [s.part.strength(signals.view(s.part.needs)) for s in summands if s.weight]  # type: ignore[attr-defined]
    known = [row for row in rows if row is not None]
    return torch.cat(known, 1) if known and len(known) == len(rows) else None
