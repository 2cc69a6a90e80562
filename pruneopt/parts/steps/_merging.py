"""What merging steps share: rows of weights over all tokens of a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruneopt.problems.selection import Selection


def identity_rows(keep: Tensor) -> Tensor:
    """`[B,N,N]` float32 identity: every token stays what it is."""
    batch, tokens = keep.shape
    return torch.eye(tokens, device=keep.device).expand(batch, -1, -1).clone()


def assigned_rows(target: Tensor, moves: Tensor) -> Tensor:
    """`[B,N,N]` float32, entry (t, j) is 1 where token j of `moves` `[B,N]` bool goes to `target` `[B,N]`."""
    rows = torch.zeros(*moves.shape, moves.shape[1], device=moves.device)
    rows.scatter_(1, target.clamp_min(0)[:, None, :], moves[:, None, :].to(rows.dtype))
    return rows


def merged(selection: Selection, merge: Tensor, **changes: Any) -> Selection:
    """The selection with one more merge: rows over the tokens as earlier steps already built them."""
    if selection.merge is not None:
        merge = merge @ selection.merge
    return replace(selection, merge=merge, **changes)


def protected_of(selection: Selection) -> Tensor:
    """`[B,N]` bool: tokens that the problem protected; none when it protected none."""
    protected = getattr(getattr(selection.solution, "problem", None), "protected", None)
    return torch.zeros_like(selection.keep) if protected is None else protected & selection.keep
