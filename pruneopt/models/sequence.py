"""What decoder layers work on after a cut: a shorter sequence with masks and positions of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.columns import Columns
from pruneopt.models.compat import causal_mask


@dataclass
class Segment:
    """The columns that decoder layers from `layer` on hold, until the next cut.

    `valid` `[B,W]` bool: real tokens.  `full`: every column of every row is real, known without looking.
    `following` `[B,1]`: position of the first decoded token once a cut has numbered tokens afresh
    (`compact`), None while every token holds the position of the unpruned prompt.
    """

    layer: int
    valid: Tensor
    full: bool
    following: Tensor | None = None

    @property
    def width(self) -> int:
        return self.valid.shape[1]

    def take_rows(self, rows: Tensor, batch: int) -> Segment:
        """The segment after its cache moved `rows` of `batch`; a row may stand for several beams."""

        def take(values: Tensor) -> Tensor:
            repeated = values.repeat_interleave(batch // len(values), dim=0)
            return repeated[rows.to(values.device)]

        following = None if self.following is None else take(self.following)
        return replace(self, valid=take(self.valid), following=following)


@dataclass
class CacheState:
    """What later steps must know of a pruned prompt.  It travels with the cache that the prompt filled.

    `columns`: width of the unpruned prompt.  `segments`: in order of their layers.
    """

    columns: int
    segments: list[Segment] = field(default_factory=list)

    def at(self, layer: int) -> Segment | None:
        """The segment that `layer` works on, None before the first cut."""
        found = None
        for segment in self.segments:
            if segment.layer <= layer:
                found = segment
        return found

    def cut(self, segment: Segment) -> None:
        """Layers from that of `segment` on work on it; an earlier cut at the same layer is overtaken."""
        others = [s for s in self.segments if s.layer != segment.layer]
        self.segments = sorted([*others, segment], key=lambda s: s.layer)

    def evict(self, layer: int, *, held: Columns, left: Columns) -> None:
        """The cache of one layer, which held `held`, holds `left`; later layers hold what they did."""
        before = self.at(layer) or Segment(layer, held.valid, held.full)
        if all(segment.layer != layer + 1 for segment in self.segments):
            self.cut(replace(before, layer=layer + 1))
        self.cut(Segment(layer, left.valid, left.full, before.following))

    def take_rows(self, rows: Tensor, batch: int) -> CacheState:
        """The state of a cache that held `batch` rows and now holds those named by `rows` (int64)."""
        return replace(self, segments=[segment.take_rows(rows, batch) for segment in self.segments])


def segment_mask(
    adapter: ModelAdapter, segment: Segment, *, hidden: Tensor, past: int, tail: Tensor | None
) -> Any:
    """Mask of a segment for `q` new columns after `past` cached ones; `tail` `[B, past + q - W]` or None.

    Raises ModelError when the cache is used for a batch that its own does not divide.
    """
    batch, new = hidden.shape[:2]
    if segment.full and tail is None:
        return causal_mask(adapter.text_config, hidden, valid=None, past=past)
    valid = segment.valid
    if valid.shape[0] != batch:
        if batch % valid.shape[0]:
            raise ModelError(
                f"the cache was pruned for a batch of {valid.shape[0]} but is used for {batch}; start with "
                "a new cache, or use num_return_sequences"
            )
        valid = valid.repeat_interleave(batch // valid.shape[0], dim=0)
    if tail is None:
        tail = torch.ones(batch, past + new - segment.width, dtype=torch.bool, device=hidden.device)
    return causal_mask(adapter.text_config, hidden, valid=torch.cat([valid, tail.bool()], 1), past=past)


def rotary_of(adapter: ModelAdapter, hidden: Tensor, *, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin of positions `[A,B,W]` from the model's own rotary embedding."""
    ids = positions[0] if positions.shape[0] == 1 else positions
    cos, sin = adapter.text.rotary_emb(hidden, ids)
    return cos, sin


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
