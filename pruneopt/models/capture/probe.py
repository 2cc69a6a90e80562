"""Attention of a few query rows, recomputed beside the fused kernel in float32."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError


def attention_logits(query: Tensor, key: Tensor, *, allowed: Tensor | None, scale: float) -> Tensor:
    """`[B,H,R,L]` float32, -inf where not allowed.

    Parameters
    ----------
    query: `[B,H,R,d]`.  key: `[B,G,L,d]` with H a multiple of G (grouped heads share a key head).
    allowed: `[B,R,L]` bool or None.  scale: multiplies the logits.
    """
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    grouped = query.float().reshape(batch, groups, heads // groups * rows, width)
    scores = (grouped @ key.float().transpose(2, 3)).mul_(scale).view(batch, heads, rows, -1)
    return scores if allowed is None else scores.masked_fill(~allowed[:, None], -torch.inf)


def attention_rows(query: Tensor, key: Tensor, *, allowed: Tensor | None, scale: float) -> Tensor:
    """Softmax over keys of `attention_logits`, `[B,H,R,L]` float32."""
    return attention_logits(query, key, allowed=allowed, scale=scale).softmax(dim=3)


def received_attention(query: Tensor, key: Tensor, *, scale: float, block: int = 256) -> Tensor:
    """Mean over all queries of the attention that each key receives, `[B,H,L]` float32, block by block."""
    total = torch.zeros(query.shape[0], query.shape[1], key.shape[2], device=query.device)
    for start in range(0, query.shape[2], block):
        rows = slice(start, min(start + block, query.shape[2]))
        total += attention_rows(query[:, :, rows], key, allowed=None, scale=scale).sum(2)
    return total / query.shape[2]


def rotary_function(module: torch.nn.Module) -> Callable[..., Any]:
    """The rotary embedding that an attention module applies.

    Raises ModelError for a layout without `apply_rotary_pos_emb`.
    """
    found = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if found is None:
        raise ModelError(
            f"{type(module).__name__} has no apply_rotary_pos_emb in its module; attention rows and rotated "
            "keys cannot be computed for this language model"
        )
    return found


def rotate(module: torch.nn.Module, states: Tensor, *, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the module's rotary embedding in float32 to `[B,H,R,d]` at cos and sin `[B,R,d]`."""
    cos, sin = (part.float() for part in rotary)
    states = states.float()
    return rotary_function(module)(states, states, cos, sin)[0]


def vision_rotary_function(module: torch.nn.Module) -> Callable[..., Any]:
    """The rotary embedding that an encoder's attention applies to `[S,H,d]`, with cos and sin `[S,d]`."""
    found = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb_vision", None)
    if found is None:
        raise ModelError(f"{type(module).__name__} has no apply_rotary_pos_emb_vision in its module")
    return found
