"""One prefill while pruning: signals are kept for the visual tokens that are left, cuts are made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError, SignalError
from pruneopt.grouping import join_groups, split_groups
from pruneopt.models.base import ModelAdapter
from pruneopt.models.compat import causal_mask
from pruneopt.models.decoder import View
from pruneopt.models.encoder_signals import PER_CROP
from pruneopt.models.prompt import Prompt
from pruneopt.models.sequence import (
    CacheState,
    Segment,
    compact_positions,
    emission,
    inverse,
    placed,
    survivors,
    take_columns,
    take_rotary,
)
from pruneopt.pruner import Clock, Pruner
from pruneopt.signals import Signals, signal_info
from pruneopt.solution import Selection
from pruneopt.spec import Spec, StageSpec

Key = tuple[str, int | None]


@dataclass
class Cut:
    """What one stage did: the survivors per row, and the selection behind them."""

    layer: int
    stage: StageSpec
    selection: Selection
    kept: Tensor  # [B',K] columns in the unpruned prompt, -1 at padding
    lengths: list[int]  # real tokens per row from this layer on
    width: int  # columns from this layer on
    visual: list[int]  # free visual tokens per row of prompt.rows


@dataclass
class Flow:
    """State of one prefill.  `store` holds signals of the visual tokens that are still there.

    `clock` builds the clock of a stage; `check` looks for NaN before a cut instead of after the pass.
    """

    adapter: ModelAdapter
    spec: Spec
    prompt: Prompt
    clock: Callable[[], Clock]
    check: bool
    state: CacheState = field(init=False)
    cuts: list[Cut] = field(default_factory=list)
    store: dict[Key, Tensor] = field(default_factory=dict)
    rotary: tuple[Tensor, Tensor] | None = None
    positions: Tensor | None = None  # [A,B or 1,W] of the columns as they stand
    seconds: dict[str, float] = field(default_factory=dict)
    bad: Tensor | None = None
    deepstack: list[Tensor] = field(default_factory=list)
    visual: Tensor | None = None  # [B,W] visual columns, and [B,W] their rows in `deepstack`
    feature: Tensor | None = None
    crop: Tensor | None = None  # [B',N] crop of each token, for signals that exist once per crop

    def __post_init__(self) -> None:
        prompt = self.prompt
        self.state = CacheState(prompt.columns)
        device = prompt.place.device
        every = len(prompt.rows) == prompt.batch
        self.rows = None if every else placed(prompt.rows, device)
        self.place, self.text, self.last = prompt.place, prompt.text, prompt.last
        self.origin = prompt.place
        self.mask = prompt.place >= 0
        self.alive = list(prompt.started)
        self.lengths = list(prompt.lengths)
        self.valid, self.width = prompt.real, prompt.columns
        for name, tensor in prompt.geometry.items():
            self.store[name, None] = tensor
        self.store["size", None] = torch.ones(prompt.place.shape, device=device)

    @property
    def size(self) -> Tensor:
        """`[B',N]`: how many original tokens each one that is left stands for."""
        return self.store["size", None]

    def view(self) -> View:
        assert self.rotary is not None
        return View(self.rows, self.place, self.mask, self.text, self.last, self.valid, self.rotary)

    def timed(self, name: str, start: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def set_deepstack(self, visual: Tensor, features: list[Tensor]) -> None:
        """Features to add after the first layers; see `ModelAdapter.take_deepstack`."""
        self.deepstack, self.visual = features, visual
        self.feature = (visual.flatten().long().cumsum(0) - 1).clamp_min(0).view(visual.shape)

    def add_deepstack(self, layer: int, hidden: Tensor) -> Tensor:
        """`hidden` `[B,W,D]` with the features of `layer` added at the visual columns that are left."""
        assert self.visual is not None and self.feature is not None
        added = hidden + self.deepstack[layer].to(hidden)[self.feature]
        return torch.where(self.visual[:, :, None], added, hidden)

    def signals(self, stage: StageSpec, hidden: Tensor) -> Signals:
        """Everything that this stage reads, at the tokens that are left."""
        layer = stage.insertion.layer_index
        view = self.view()
        tensors: dict[str, Tensor] = {}
        names = set(stage.needs)
        if self.prompt.groups > 1:
            names.add("group")
        if not any(signal_info(name).token_dims for name in names):
            names.add("xy")
        for name in sorted(names):
            base, _, at = name.partition("@")
            if base == "features":
                tensors[name] = view.visual(hidden)
            elif base == "text_features":
                tensors[name] = view.texts(hidden)
            elif base == "text_mask":
                tensors[name] = self.text >= 0
            elif base == "text_index":
                tensors[name] = self.text.clamp_min(0)
            elif base == "visual_index":
                tensors[name] = self.place.clamp_min(0)
            elif base in PER_CROP:
                continue
            elif (base, None) in self.store and not at:
                tensors[name] = self.store[base, None]
            elif base == "importance":
                raise SignalError(
                    "signal 'importance' needs an earlier cut that ranks tokens; there was none"
                )
            else:
                tensors[name] = self.store[base, int(at) if at else layer - 1]
        return Signals(tensors, self.mask if len(set(self.alive)) > 1 else None)

    def cut(self, stage: StageSpec, hidden: Tensor) -> Tensor:
        """Choose, remove, and remember; returns the shorter hidden states `[B,W',D]`."""
        clock = self.clock()
        with torch.no_grad():
            signals = self.signals(stage, hidden)
            clock.lap("signals")
            selection = self._select(stage, signals, clock)
            self._refuse_order(selection)
            counts = list(selection.known_counts)
        hidden = self._apply(stage, selection, counts, hidden)
        clock.lap("apply")
        for name, seconds in clock.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return hidden

    def _select(self, stage: StageSpec, signals: Signals, clock: Clock) -> Selection:
        names = sorted(name for name in stage.needs if name.partition("@")[0] in PER_CROP)
        given, place = signals, None
        if names:
            given, place = self._with_crops(stage, signals, names)
        selection = Pruner(stage).select(given, self.prompt.started, clock, self.check)
        if not self.check:
            bad = given.bad_values(sorted(stage.needs)).any()
            self.bad = bad if self.bad is None else self.bad | bad
        if place is not None:
            selection = join_groups(selection, place, given.sample, signals.batch, signals.tokens)
        return selection

    def _with_crops(
        self, stage: StageSpec, signals: Signals, names: list[str]
    ) -> tuple[Signals, Tensor | None]:
        """Add signals that exist once per crop: one problem per crop where samples have several."""
        assert self.crop is not None
        first, place = self.crop[:, 0], None
        if self.prompt.groups > 1:
            if stage.budget.scope != "group":
                raise ModelError(
                    f"signal {names[0]!r} is one per crop, but this budget pools the crops of a sample; set "
                    "budget.scope=group"
                )
            signals, place = split_groups(signals)
            first = self.crop[signals.sample, place[:, 0]]
        tensors = {name: signals[name] for name in signals if name != "group" or name in stage.needs}
        if place is not None:
            tensors.pop("group", None)
        for name in names:
            base, _, at = name.partition("@")
            tensors[name] = self.store[base, int(at) if at else None][first]
        return Signals(tensors, signals.mask if signals.ragged else None, signals.sample), place

    def _refuse_order(self, selection: Selection) -> None:
        if selection.rank is not None and self.spec.positions != "compact":
            raise ModelError(
                "a step orders the kept tokens anew, which needs positions=compact: with positions=keep "
                "every token holds its place; override positions=compact"
            )

    def _apply(self, stage: StageSpec, selection: Selection, counts: list[int], hidden: Tensor) -> Tensor:
        layer = stage.insertion.layer_index
        if selection.importance is not None:
            self.store["importance", None] = selection.importance
        unchanged = counts == self.alive and selection.merge is None and selection.rank is None
        if not unchanged:
            hidden = self._remove(layer, selection, counts, hidden)
        kept = self.origin.masked_fill(~self.mask, -1)
        self.cuts.append(Cut(layer, stage, selection, kept, list(self.lengths), self.width, list(self.alive)))
        return hidden

    def _remove(self, layer: int, selection: Selection, counts: list[int], hidden: Tensor) -> Tensor:
        prompt, device = self.prompt, hidden.device
        old, width = self.width, self.width
        dropped = torch.zeros(prompt.batch, width + 1, dtype=torch.bool, device=device)
        gone = torch.zeros(self.place.shape[0], width + 1, dtype=torch.bool, device=device)
        gone.scatter_(1, self.place.masked_fill(~self.mask, width), ~selection.keep)
        if self.rows is None:
            dropped = gone
        else:
            dropped[self.rows] = gone
        used = [n + pad for n, pad in zip(self.lengths, prompt.inner, strict=True)]
        first = placed([width - n for n in used], device)
        alive = (torch.arange(width, device=device) >= first[:, None]) & ~dropped[:, :width]
        for row, before, after in zip(prompt.rows, self.alive, counts, strict=True):
            self.lengths[row] += after - before
        used = [n + pad for n, pad in zip(self.lengths, prompt.inner, strict=True)]
        self.width, self.alive = max(used), counts
        order = survivors(alive, self.width)
        first = placed([self.width - n for n in used], device)
        inside = torch.arange(self.width, device=device) >= first[:, None]
        self.valid = take_columns(self.valid, order) & inside
        full = all(n == self.width for n in used) and not any(prompt.inner)

        places, chosen = emission(selection.keep, selection.rank, self.store["group", None], max(counts))
        merged = self._merged(selection, chosen, hidden)
        old_place, back = self.place.clamp_min(0), inverse(order, old)
        back_rows = back if self.rows is None else back[self.rows]
        self.place = back_rows.gather(1, old_place.gather(1, places))
        self.mask = torch.arange(chosen.shape[1], device=device) < placed(counts, device)[:, None]
        content = order
        if selection.rank is not None:
            content = self._reordered(order, old_place.gather(1, chosen))
        hidden = take_columns(hidden, content)
        if self.visual is not None and self.feature is not None:
            self.visual = take_columns(self.visual, order) & inside
            self.feature = take_columns(self.feature, content)
        if merged is not None:
            hidden = self._write(hidden, merged, counts)
        self._carry(selection, chosen)
        self.text = back_rows.gather(1, self.text.clamp_min(0)).masked_fill(self.text < 0, -1)
        self.last = back_rows.gather(1, self.last[:, None])[:, 0]
        self._positions(layer, order, full, hidden)
        return hidden

    def _reordered(self, order: Tensor, source: Tensor) -> Tensor:
        """`order` `[B,W]`, but the visual columns get what stood in the old columns `source` `[B',K]`."""
        spare = torch.cat([order, order[:, :1]], 1)  # padding is written to a column that is cut off again
        rows = spare if self.rows is None else spare[self.rows]
        rows = rows.scatter(1, self.place.masked_fill(~self.mask, order.shape[1]), source)
        if self.rows is not None:
            rows = spare.index_copy(0, self.rows, rows)
        return rows[:, :-1]

    def _merged(self, selection: Selection, chosen: Tensor, hidden: Tensor) -> Tensor | None:
        """New values `[B',K,D]` of the kept tokens after a merge, in the order of emission."""
        if selection.merge is None:
            return None
        values = self.view().visual(hidden)
        real = values.float().masked_fill(~self.mask[:, :, None], 0)
        return (take_columns(selection.merge, chosen).float() @ real).to(hidden.dtype)

    def _write(self, hidden: Tensor, values: Tensor, counts: list[int]) -> Tensor:
        owner = [row for row, n in enumerate(counts) for _ in range(n)]
        slot = [i for n in counts for i in range(n)]
        rows = placed(owner, hidden.device)
        slots = placed(slot, hidden.device)
        full_rows = rows if self.rows is None else self.rows[rows]
        return hidden.index_put((full_rows, self.place[rows, slots]), values[rows, slots])

    def _carry(self, selection: Selection, chosen: Tensor) -> None:
        """Gather every stored signal to the survivors."""
        if self.crop is not None:
            self.crop = take_columns(self.crop, chosen)
        for key, tensor in self.store.items():
            for dim in signal_info(key[0]).token_dims:
                tensor = take_columns(tensor, chosen, dim)
            self.store[key] = tensor
        self.origin = take_columns(self.origin, chosen)
        if selection.size is not None:
            size = selection.size.masked_fill(~selection.keep, 0).nan_to_num(0.0)
            self.store["size", None] = take_columns(size.float(), chosen)

    def _positions(self, layer: int, order: Tensor, full: bool, hidden: Tensor) -> None:
        assert self.rotary is not None
        segment = Segment(layer, self.valid, self.width, full)
        if self.spec.positions == "compact":
            assert self.positions is not None
            old = self.positions.expand(-1, self.prompt.batch, -1)
            taken = torch.stack([take_columns(axis, order) for axis in old])
            self.positions, segment.following = compact_positions(taken, self.valid)
            self.rotary = rotary_of(self.adapter, hidden, self.positions)
        else:
            self.rotary = take_rotary(self.rotary, order)
            if self.positions is not None:
                old = self.positions.expand(-1, self.prompt.batch, -1)
                self.positions = torch.stack([take_columns(axis, order) for axis in old])
        segment.rotary = self.rotary
        self.state.segments = [s for s in self.state.segments if s.layer != layer] + [segment]


def rotary_of(adapter: ModelAdapter, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin of positions `[A,B,W]` from the model's own rotary embedding."""
    ids = positions[0] if positions.shape[0] == 1 else positions
    cos, sin = adapter.text.rotary_emb(hidden, ids)
    return cos, sin


def segment_mask(
    adapter: ModelAdapter, segment: Segment, hidden: Tensor, past: int, tail: Tensor | None
) -> Any:
    """Mask of a segment for `q` new columns after `past` cached ones; `tail` `[B, past + q - W]` or None."""
    batch, new = hidden.shape[:2]
    total = past + new
    if segment.full and tail is None:
        return causal_mask(adapter.text_config, hidden, None, past)
    valid = segment.valid
    if valid.shape[0] != batch:
        if batch % valid.shape[0]:
            raise ModelError(
                f"the cache was pruned for a batch of {valid.shape[0]} but is used for {batch}; start with "
                "a new cache, or use num_return_sequences"
            )
        valid = valid.repeat_interleave(batch // valid.shape[0], dim=0)
    added = total - segment.width
    if tail is None:
        tail = torch.ones(batch, added, dtype=torch.bool, device=hidden.device)
    return causal_mask(adapter.text_config, hidden, torch.cat([valid, tail.bool()], 1), past)
