"""One pass over a prompt: signals are captured, cuts are made, a report is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError, SignalError
from pruneopt.grouping import join_groups, split_groups
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import remember
from pruneopt.models.capture.decoder import Captured, DecoderCapture, View
from pruneopt.models.capture.encoder_signals import EncoderCapture
from pruneopt.models.capture.stream import Stream, signals_of
from pruneopt.models.columns import Columns, Move, take
from pruneopt.models.deepstack import Deepstack
from pruneopt.models.outcome import Cut, Outcome
from pruneopt.models.prompt import Prompt
from pruneopt.models.refuse import refuse_selection
from pruneopt.models.report import Report, measure
from pruneopt.models.sequence import CacheState, Segment, compact_positions, rotary_of, segment_mask
from pruneopt.models.store import SignalStore
from pruneopt.problems.selection import Selection
from pruneopt.pruner import Clock, Pruner
from pruneopt.signals import Place, Signals, signal_info
from pruneopt.spec.schema import Spec, StageSpec

if TYPE_CHECKING:
    from pruneopt.models.sites import Site


@dataclass
class Sources:
    """Where signals come from: captures of the decoder, and of the encoder together with its inputs."""

    decoder: DecoderCapture
    encoder: EncoderCapture | None
    inputs: Mapping[str, Any]
    captured: Captured = field(default_factory=Captured)


class Prefill:
    """State of one pass over a prompt, made when it begins and dropped when it ends, by whatever road.

    It knows what a removal does to everything that runs along the sequence; when there is one, and of what,
    the sites decide: they call `cut`, or `remove` with a selection of their own.

    Parameters
    ----------
    prompt: as read before the pass.  sources: None where no layer is asked for signals.
    clock: builds the clock of a stage.  check: look for NaN before each cut; else once, after the pass.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        spec: Spec,
        *,
        prompt: Prompt,
        sources: Sources,
        sites: Sequence[Site],
        clock: Callable[[], Clock],
        check: bool,
    ):
        self.adapter, self.spec, self.prompt, self.sources = adapter, spec, prompt, sources
        self.sites, self.clock, self.check = sites, clock, check
        self.columns, self.store = Columns.of(prompt), SignalStore(prompt)
        self.state, self.cuts, self.masks = CacheState(prompt.columns), list[Cut](), dict[int, Any]()
        self.rotary: tuple[Tensor, Tensor] | None = None  # cos and sin [B or 1,W,d] of the columns
        self.positions: Tensor | None = None  # [A,B or 1,W] of the columns
        self.cache: Any = None  # what the prompt fills
        self.deepstack: Deepstack | None = None
        self.bad: Tensor | None = None  # [B'] where a signal was NaN, of all cuts so far
        self.seconds: dict[str, float] = {}

    # what happens, in the order in which it does

    def text_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Encoder signals are ready; deepstack features are taken over from the text model."""
        encoder, inputs = self.sources.encoder, self.sources.inputs
        if encoder is not None:
            start = time.perf_counter()
            with torch.no_grad():
                self.store.update(encoder.collect(inputs, self.prompt))
                self.store.crop = encoder.crops(inputs, self.prompt)
            self.timed("encoder signals", start)
        for site in self.sites:
            site.text_starts(self)
        added = self.adapter.take_deepstack(kwargs)
        if added is None:
            return None
        self.deepstack = Deepstack.of(*added)
        return args, self.adapter.without_deepstack(kwargs)

    def positions_are(self, ids: Tensor) -> None:
        """Position ids `[B or 1,W]` or `[A,B,W]` that the rotary embedding is asked for."""
        if self.positions is None:
            self.positions = ids if ids.dim() == 3 else ids[None]

    def before_layer(
        self, index: int, hidden: Tensor, *, kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]] | None:
        """Let the sites cut.  The hidden states that enter and the arguments that change with them;
        None before the first cut.
        """
        if self.rotary is None:
            self.rotary = kwargs["position_embeddings"]
        if index == 0:
            self._entry(hidden)
        self.cache = kwargs.get("past_key_values")
        for site in self.sites:
            hidden = site.before_layer(self, index, hidden=hidden)
        if index in self.sources.decoder.plan:
            self.sources.captured.keep(index, "in", value=hidden)
        segment = self.state.at(index)
        if segment is None:
            return None
        if self.cache is not None:
            remember(self.cache, self.state)
        if segment.layer not in self.masks:
            self.masks[segment.layer] = segment_mask(self.adapter, segment, hidden=hidden, past=0, tail=None)
        mask = self.masks[segment.layer]
        return hidden, {"attention_mask": mask, "position_embeddings": self.rotary, "position_ids": None}

    def after_layer(self, index: int, output: Tensor) -> Tensor | None:
        """Add deepstack features, then compute the signals of this layer."""
        added = self.deepstack is not None and index < len(self.deepstack.features)
        if self.deepstack is not None and added:
            output = self.deepstack.added(index, output)
        decoder, captured = self.sources.decoder, self.sources.captured
        if index in decoder.plan:
            start = time.perf_counter()
            captured.keep(index, "out", value=output)
            with captured.closed(index) as raw:
                found = decoder.compute(index, self.view(), raw=raw)
            self.store.update({(base, index): tensor for base, tensor in found.items()})
            self.timed("signals", start)
        for site in self.sites:
            site.after_layer(self, index)
        return output if added else None

    def finish(self, output: Any) -> tuple[Outcome, Report] | None:
        """The last word of the sites, the deferred NaN check, then the results.  None when the model did not
        run every cut.

        Raises SignalError when a signal was NaN or infinite.
        """
        for site in self.sites:
            site.finish(self)
        if len(self.cuts) != len(self.spec.stages):
            return None
        if self.bad is not None and bool(self.bad.any()):
            raise SignalError(
                "a signal holds NaN or infinity; the output of this pass must not be used. Check the model's "
                "dtype (try float32 or bfloat16) and its inputs"
            )
        notes = tuple(note for site in self.sites for note in site.notes)
        outcome = Outcome(self.spec, self.prompt, self.cuts, self.store["size", None], self.seconds, notes)
        return outcome, measure(self.adapter, outcome, cache=getattr(output, "past_key_values", None))

    # one cut

    def cut(self, stage: StageSpec, hidden: Tensor) -> Tensor:
        """Choose by what is known here and remove; returns the shorter hidden states `[B,W',D]`.

        Raises what the pruner raises, and `remove`.
        """
        clock = self.clock()
        selection = self.choose(stage, clock=clock, hidden=hidden)
        return self.remove(stage, selection, hidden=hidden, clock=clock)

    def choose(self, stage: StageSpec, *, clock: Clock, hidden: Tensor | None = None) -> Selection:
        """What the pruner of a stage says to the signals as they stand.

        Parameters
        ----------
        hidden
            `[B,W,D]`, the stream that is cut; None where an insertion provides no signal of it.

        Raises
        ------
        ModelError
            For a selection that asks for more than the stage can apply.
        """
        with torch.no_grad():
            stream = torch.empty(0) if hidden is None else hidden
            signals = self.store.signals(stage, self.columns, hidden=stream)
            clock.lap("signals")
            selection = self._select(stage, signals, clock=clock)
        refuse_selection(self.spec, stage, selection=selection)
        return selection

    def remove(self, stage: StageSpec, selection: Selection, *, hidden: Tensor, clock: Clock) -> Tensor:
        """Remove what `selection` drops of the tokens in `columns.place`, and remember it."""
        counts = selection.known_counts
        if selection.importance is not None:
            self.store["importance", None] = selection.importance
        dropped = counts != self.columns.alive
        if dropped or selection.merge is not None or selection.rank is not None:
            hidden = self._shorten(stage, selection, counts=counts, hidden=hidden)
        self.done(Cut.of(stage, selection, columns=self.columns), clock=clock)
        return hidden

    def done(self, cut: Cut, *, clock: Clock) -> None:
        """Write down what a stage did, and how long that took."""
        self.cuts.append(cut)
        clock.lap("apply")
        for name, seconds in clock.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _select(self, stage: StageSpec, signals: Signals, *, clock: Clock) -> Selection:
        names = sorted(name for name in stage.needs if signal_info(name).place is Place.CROP)
        given, place = self._with_crops(stage, signals, names=names) if names else (signals, None)
        selection = Pruner(stage).select(given, self.prompt.started, clock=clock, check=self.check)
        if not self.check:
            bad = given.bad_values(sorted(stage.needs)).any()
            self.bad = bad if self.bad is None else self.bad | bad
        if place is not None:
            selection = join_groups(
                selection, place, sample=given.sample, batch=signals.batch, tokens=signals.tokens
            )
        return selection

    def _with_crops(
        self, stage: StageSpec, signals: Signals, *, names: list[str]
    ) -> tuple[Signals, Tensor | None]:
        """Add signals that exist once per crop: one problem per crop where samples have several."""
        assert self.store.crop is not None
        crops, place = self.store.crop[:, 0], None
        if self.prompt.groups > 1:
            if stage.budget.scope != "group":
                raise ModelError(
                    f"signal {names[0]!r} is one per crop, but this budget pools the crops of a sample; set "
                    "budget.scope=group"
                )
            signals, place = split_groups(signals)
            crops = self.store.crop[signals.sample, place[:, 0]]
        tensors = {name: signals[name] for name in signals if name != "group" or name in stage.needs}
        if place is not None:
            tensors.pop("group", None)
        tensors |= {name: self.store.per_crop(name, crops) for name in names}
        return Signals(tensors, signals.mask if signals.ragged else None, sample=signals.sample), place

    def _shorten(
        self, stage: StageSpec, selection: Selection, *, counts: tuple[int, ...], hidden: Tensor
    ) -> Tensor:
        """Everything that runs along the sequence follows a removal.  The order of the steps matters."""
        # Columns first: all else is told by them, and by the move, where to go.
        old = self.columns
        self.columns, move = old.after(
            selection.keep, counts, rank=selection.rank, group=self.store["group", None]
        )
        # Merges read the tokens that go, so before hidden states are gathered; they are written after it.
        merged = _merged(selection, move, values=old.visual(hidden), mask=old.mask)
        hidden = take(hidden, move.content)
        if merged is not None:
            hidden = self.columns.write(hidden, merged)
        # Signals move before sizes are set: a size says what its token now stands for, the carried ones did.
        self.store.carry(move.tokens)
        if selection.size is not None:
            size = selection.size.masked_fill(~selection.keep, 0).nan_to_num(0.0)
            self.store["size", None] = take(size.float(), move.tokens)
        if self.deepstack is not None:
            self.deepstack = self.deepstack.after(self.columns, move)
        # Positions last: under `compact` the model's rotary embedding is asked for what is left.
        self._reposition(stage, move, hidden=hidden)
        self.masks.clear()
        return hidden

    def _reposition(self, stage: StageSpec, move: Move, *, hidden: Tensor) -> None:
        """Positions and rotary embedding of the columns that are left, and the segment for later steps."""
        assert self.rotary is not None
        layer, before = stage.insertion.layer_index, self.state.at(stage.insertion.layer_index)
        segment = Segment(layer, self.columns.valid, self.columns.full)
        # Positions move under either policy: a later cut may number them afresh although this one does not.
        if self.positions is not None:
            ids = self.positions.expand(-1, self.prompt.batch, -1)
            self.positions = torch.stack([take(axis, move.order) for axis in ids])
        if self.spec.positions_at(stage) == "compact":
            assert self.positions is not None
            self.positions, segment.following = compact_positions(self.positions, self.columns.valid)
            self.rotary = rotary_of(self.adapter, hidden, positions=self.positions)
        else:
            cos, sin = self.rotary
            self.rotary = take(cos, move.order), take(sin, move.order)
            segment.following = None if before is None else before.following  # as numbered at earlier cuts
        self.state.cut(segment)

    # small things

    def view(self) -> View:
        assert self.rotary is not None
        return View(self.columns, self.rotary)

    def timed(self, name: str, start: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _entry(self, hidden: Tensor) -> None:
        """Signals of the stream that enters the first layer."""
        found = signals_of("start", self.spec.needs, stream=Stream(self.columns, hidden.detach()))
        self.store.update({(name, None): tensor for name, tensor in found.items()})


def _merged(selection: Selection, move: Move, *, values: Tensor, mask: Tensor) -> Tensor | None:
    """New values `[B',K,D]` of the kept tokens, from `values` `[B',N,D]` of all; None without a merge."""
    if selection.merge is None:
        return None
    real = values.float().masked_fill(~mask[:, :, None], 0)
    return (take(selection.merge, move.tokens).float() @ real).to(values.dtype)


def checks_each_cut(device: torch.device) -> bool:
    """Whether NaN is looked for before a cut: where looking waits for the device it is left to the end."""
    return device.type != "cuda"
