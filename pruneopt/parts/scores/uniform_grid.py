"""Uniform sub-sampling of the patch grid: the control without any content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score
from pruneopt.signals import Signals


@dataclass(frozen=True)
class UniformGridScore(Score):
    """Importance `[B,N]` whose k largest entries cover the grid evenly for every k; higher is kept.

    Tokens are ranked by a Halton sequence over the grid: point t of the (2,3)-Halton sequence claims the
    nearest cell not claimed yet (of equally near ones the first in reading order), so that any prefix is
    spread evenly (Halton 1960).
    """

    name: ClassVar[str] = "uniform_grid"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_positions"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"xy", "grid"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        unit = (signals["xy"].double() + 0.5) / signals["grid"].double().clamp_min(1)
        tokens = signals.tokens
        points = torch.stack([_radical_inverse(tokens, base, device=signals.device) for base in (2, 3)], 1)
        reading = unit[:, :, 1] * signals["grid"][:, :, 0] + unit[:, :, 0]
        distance = torch.cdist(
            points.expand(signals.batch, -1, -1), unit, compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance = distance.square_().add_(1e-9 * reading[:, None, :])
        claimed = torch.zeros_like(reading).masked_fill_(~signals.mask, torch.inf)
        order = torch.empty(signals.batch, tokens, dtype=torch.int64, device=signals.device)
        for t in range(tokens):
            cell = (distance[:, t] + claimed).argmin(1, keepdim=True)
            order[:, t : t + 1] = cell
            claimed.scatter_(1, cell, torch.inf)
        # a sample that is used up picks padding, or cell 0 again: those picks must not count
        rank = -torch.arange(tokens, dtype=torch.float32, device=signals.device).expand_as(order)
        live = -rank < signals.mask.sum(1, keepdim=True)
        score = torch.full(order.shape, -float(tokens), dtype=torch.float32, device=signals.device)
        score.scatter_reduce_(1, order, torch.where(live, rank, -float(tokens)), "amax")
        return score


def _radical_inverse(count: int, base: int, *, device: torch.device) -> Tensor:
    """1..count, their digits in `base` mirrored at the point: `[count]` float64 in (0,1)."""
    left = torch.arange(1, count + 1, device=device)
    out, scale = torch.zeros(count, dtype=torch.float64, device=device), 1.0 / base
    while scale * count * base >= 1:
        out, left, scale = out + scale * (left % base), left // base, scale / base
    return out
