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


def sums_at(home: Tensor, values: Tensor) -> Tensor:
    """`[B,N]` sum of the `values` `[B,N]` of all tokens whose `home` `[B,N]` is a token."""
    return torch.zeros_like(values).scatter_add_(1, home, values)


def homed_rows(home: Tensor, given: Tensor, *, own: Tensor) -> Tensor:
    """`[B,N,N]` float32: what every token counts for where it goes, each to one other token.

    Token j counts `given[j]` in the row of `home[j]`, where that is not 0, and `own[i]` in its own row i; all
    are `[B,N]`.  Two scatters into zeros: what a merge costs beyond that is paid by whoever applies it.
    """
    rows = torch.zeros(*home.shape, home.shape[1], device=home.device)
    rows.scatter_(1, home[:, None, :], given[:, None, :])
    rows.diagonal(dim1=1, dim2=2).copy_(own)
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
