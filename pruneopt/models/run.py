"""What a run does at each hook, and what it tells the user."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import InputError, ModelError, SignalError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import recall, remember
from pruneopt.models.decoder import DecoderCapture
from pruneopt.models.encoder_signals import EncoderCapture
from pruneopt.models.flow import Flow, rotary_of, segment_mask
from pruneopt.models.hooks import Attachments
from pruneopt.models.plan import plan_captures
from pruneopt.models.prompt import read_prompt, refuse_without_text
from pruneopt.models.report import Report, measure
from pruneopt.models.sequence import CacheState
from pruneopt.pruner import Clock
from pruneopt.solution import Selection
from pruneopt.spec import Spec


class Run:
    """One application of a spec to a model.

    `kept`, `kept_visual`, `selections` and `report` describe the last prompt that was run.  `prompts` counts
    them.  All state of a forward pass lives here or on the cache that the pass filled.
    """

    def __init__(self, adapter: ModelAdapter, spec: Spec, clock: Callable[[], Clock] | None = None):
        self.adapter, self.spec = adapter, spec
        self.clock = clock or Clock
        self.prompts = 0
        self.flow: Flow | None = None
        self._step: CacheState | None = None
        self._masks: dict[int, Any] = {}
        self._encoding = False
        self._inputs: dict[str, Any] = {}
        self._encoded: dict[str, Any] = {}  # what `generate` encoded ahead of the prompt
        self._last: Flow | None = None
        self._report: Report | None = None
        self._lost: tuple[int, Tensor | None] = (0, None)
        plan, encoder = plan_captures(adapter, spec)
        self.capture = DecoderCapture(adapter, plan)
        self.encoder = EncoderCapture(adapter, encoder) if encoder else None

    # what the user reads

    @property
    def last(self) -> Flow:
        if self._last is None:
            raise InputError("nothing was run yet: call the model, or generate, inside the pruning context")
        return self._last

    @property
    def kept(self) -> dict[int, list[list[int]]]:
        """Decoder-layer index to one list per sample: the sorted positions of the unpruned prompt that
        survive from that layer on, text and visual.

        Positions are columns of the padded `input_ids` of that sample; padding is never listed.
        """
        prompt = self.last.prompt
        text = (prompt.real & ~prompt.free).cpu()
        out: dict[int, list[list[int]]] = {}
        for layer, rows in self.kept_visual.items():
            out[layer] = [
                sorted({*text[b].nonzero().squeeze(1).tolist(), *rows[b]}) for b in range(prompt.batch)
            ]
        return out

    @property
    def kept_visual(self) -> dict[int, list[list[int]]]:
        """Like `kept`, but only the prunable visual tokens; empty lists for samples without a picture."""
        prompt = self.last.prompt
        out: dict[int, list[list[int]]] = {}
        for cut in self.last.cuts:
            rows: list[list[int]] = [[] for _ in range(prompt.batch)]
            for row, kept in zip(prompt.rows, cut.kept.tolist(), strict=True):
                rows[row] = sorted(column for column in kept if column >= 0)
            out[cut.layer] = rows
        return out

    @property
    def selections(self) -> list[Selection]:
        """The selection of every stage, in order; rows are the samples with a picture."""
        return [cut.selection for cut in self.last.cuts]

    @property
    def report(self) -> Report:
        """What was kept, what it cost and what it saved."""
        if self._report is None:
            raise InputError("nothing was run yet: call the model, or generate, inside the pruning context")
        return self._report

    # hooks

    def attach(self, attachments: Attachments) -> None:
        adapter = self.adapter
        attachments.before(adapter.base, self._begin)
        attachments.after(adapter.base, self._end, always=True)
        for name in ("get_image_features", "get_video_features"):
            if hasattr(adapter.base, name):
                attachments.attribute(adapter.base, name, self._noting(getattr(adapter.base, name)))
        attachments.before(adapter.text, self._text)
        attachments.before(adapter.text.rotary_emb, self._rotary)
        if self.encoder is not None:
            self.encoder.watch(attachments.watch)
        self.capture.watch(self._only_in_prefill(attachments))
        for index, layer in enumerate(adapter.layers):
            attachments.before(layer, self._before(index))
            attachments.after(layer, self._after(index))

    def forget_pictures(self) -> None:
        """Drop what was captured of pictures whose prompt is done, or never came."""
        self._encoded = {}
        if self.encoder is not None:
            self.encoder.clear()

    def _noting(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """`get_image_features` and its like, remembering the sizes of what they encode ahead."""
        signature = inspect.signature(encode)

        @wraps(encode)
        def noting(*args: Any, **kwargs: Any) -> Any:
            if self.flow is not None or self._encoding:
                return encode(*args, **kwargs)
            bound = signature.bind_partial(*args, **kwargs).arguments
            self._encoded |= {k: v for k, v in bound.items() if k != "kwargs"}
            self._encoding = True
            try:
                return encode(*args, **kwargs)
            finally:
                self._encoding = False

        return noting

    def _only_in_prefill(self, attachments: Attachments) -> Callable[..., None]:
        def add(module: nn.Module, what: str, callback: Callable[[Any], None]) -> None:
            def guarded(value: Any) -> None:
                if self.flow is not None:
                    callback(value)

            attachments.watch(module, what, guarded)

        return add

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.flow, self._step, self._masks, self._lost = None, None, {}, (0, None)
        self.capture.clear()
        inputs = self.adapter.bind(args, kwargs)
        if has_pixels(inputs) or not self._encoded:
            self.forget_pictures()
        else:
            inputs |= {k: v for k, v in self._encoded.items() if v is not None}
        cache = inputs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ModelError(
                f"a {type(cache).__name__} has one length for all layers and cannot hold a pruned prompt; "
                "use the default dynamic cache (drop cache_implementation)"
            )
        if past:
            self._continue(inputs, cache, past)
            return
        prompt = read_prompt(self.adapter, inputs)
        refuse_without_text(prompt, self.spec.needs)
        device = prompt.place.device
        self._inputs = inputs
        self.flow = Flow(self.adapter, self.spec, prompt, self.clock, checks_each_cut(device))

    def _continue(self, inputs: Mapping[str, Any], cache: Any, past: int) -> None:
        """A step on a cache that is not empty: decoding, or more text after a pruned prompt."""
        state = recall(cache)
        if bool((self.adapter.stream(inputs) > 0).any()) and has_pixels(inputs):
            raise ModelError(
                "a picture that comes after a cached prompt cannot be pruned; give all pictures in the first "
                "prompt, or start with an empty cache"
            )
        if state is None:
            lengths = {int(cache.get_seq_length(i)) for i in range(len(cache.layers))}
            if len(lengths) > 1:
                raise ModelError(
                    "the cache holds layers of different length but was not pruned by this library; start "
                    "with an empty cache"
                )
            return
        self._step = state
        first = state.segments[0]
        seen = past + (state.columns - first.width if first.layer == 0 else 0)
        ids = inputs.get("input_ids")
        new = (ids if ids is not None else inputs["inputs_embeds"]).shape[1]
        mask = inputs.get("attention_mask")
        tail = None
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if mask.shape[1] != seen + new:
                raise ModelError(
                    f"{new} new tokens follow {seen} seen ones but the attention mask has {mask.shape[1]} "
                    "columns; after a pruned prompt pass only the new tokens as input_ids, with the mask "
                    "of all"
                )
            tail = mask[:, state.columns :]
            tail = None if bool(tail.all()) else tail
        shift = seen - past if inputs.get("position_ids") is None else 0
        self._lost = (shift, tail)

    def _text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The text model starts: encoder signals are ready; decoded positions count the unpruned prompt."""
        if self.flow is not None:
            if self.encoder is not None:
                start = time.perf_counter()
                with torch.no_grad():
                    self.flow.store.update(self.encoder.collect(self._inputs, self.flow.prompt))
                    self.flow.crop = self.encoder.crops(self._inputs, self.flow.prompt)
                self.flow.timed("encoder signals", start)
            added = self.adapter.take_deepstack(kwargs)
            if added is None:
                return None
            self.flow.set_deepstack(*added)
            return args, self.adapter.without_deepstack(kwargs)
        shift = self._lost[0]
        if self._step is None or not shift:
            return None
        positions = kwargs.get("position_ids")
        if positions is None:
            embeds = kwargs["inputs_embeds"]
            past = int(kwargs["past_key_values"].get_seq_length())
            start_at = past + shift
            positions = torch.arange(start_at, start_at + embeds.shape[1], device=embeds.device)[None]
        else:
            positions = positions + shift
        return args, {**kwargs, "position_ids": positions}

    def _rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.flow is not None and self.flow.positions is None:
            ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
            self.flow.positions = ids if ids.dim() == 3 else ids[None]

    def _before(self, index: int) -> Callable[..., Any]:
        stages = [s for s in self.spec.stages if s.insertion.layer_index == index]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            flow, changed = self.flow, {}
            cache = kwargs.get("past_key_values")
            if flow is not None:
                if flow.rotary is None:
                    flow.rotary = kwargs["position_embeddings"]
                if index == 0:
                    self._entry(flow, hidden)
                for stage in stages:
                    hidden = flow.cut(stage, hidden)
                if index in self.capture.plan:
                    self.capture.keep(index, "in", hidden)
                segment, past, tail, masks = flow.state.at(index), 0, None, flow.masks
                if segment is not None:
                    changed["position_embeddings"] = segment.rotary
                    if cache is not None:
                        remember(cache, flow.state)
            elif self._step is not None:
                segment, tail, masks = self._step.at(index), self._lost[1], self._masks
                past = int(cache.get_seq_length(index)) if cache is not None else 0
                if segment is not None and segment.following is not None:
                    changed["position_embeddings"] = self._following(segment, hidden, past)
            else:
                return None
            if segment is None:
                return None
            if segment.layer not in masks:
                masks[segment.layer] = segment_mask(self.adapter, segment, hidden, past, tail)
            changed |= {"attention_mask": masks[segment.layer], "position_ids": None}
            if args:
                return (hidden, *args[1:]), {**kwargs, **changed}
            return args, {**kwargs, **changed, "hidden_states": hidden}

        return hook

    def _following(self, segment: Any, hidden: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Rotary embedding of decoded columns under `compact`."""
        start = segment.following + (past - segment.width)
        if start.shape[0] != hidden.shape[0]:
            start = start.repeat_interleave(hidden.shape[0] // start.shape[0], dim=0)
        ids = start + torch.arange(hidden.shape[1], device=hidden.device)
        axes = (
            3 if "mrope_section" in (getattr(self.adapter.text_config, "rope_parameters", None) or {}) else 1
        )
        return rotary_of(self.adapter, hidden, ids.expand(axes, -1, -1))

    def _entry(self, flow: Flow, hidden: Tensor) -> None:
        needs = {name.partition("@")[0] for name in self.spec.needs}
        if needs & {"embeddings", "text_embeddings", "start_embeddings", "start_mask"}:
            view = flow.view()
            flow.store["embeddings", None] = view.visual(hidden).detach()
            flow.store["text_embeddings", None] = view.texts(hidden).detach()
            flow.store["start_embeddings", None] = flow.store["embeddings", None]
            flow.store["start_mask", None] = flow.mask

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            flow = self.flow
            if flow is None:
                return None
            added = index < len(flow.deepstack)
            if added:
                output = flow.add_deepstack(index, output)
            if self.capture.plan.get(index):
                start = time.perf_counter()
                self.capture.keep(index, "out", output)
                for base, tensor in self.capture.compute(index, flow.view()).items():
                    flow.store[base, index] = tensor
                flow.timed("signals", start)
            return output if added else None

        return hook

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After a prefill: the deferred NaN check, then the report; after an error only tidy up."""
        flow, self.flow, self._inputs = self.flow, None, {}
        self.capture.clear()
        self.forget_pictures()
        if flow is None or output is None or len(flow.cuts) != len(self.spec.stages):
            return
        flow.store = {key: value for key, value in flow.store.items() if key == ("size", None)}
        flow.masks.clear()
        for segment in flow.state.segments:
            segment.rotary = None
        if flow.bad is not None and bool(flow.bad):
            raise SignalError(
                "a signal holds NaN or infinity; the output of this pass must not be used. Check the model's "
                "dtype (try float32 or bfloat16) and its inputs"
            )
        self.prompts += 1
        self._last = flow
        self._report = measure(self.adapter, flow, getattr(output, "past_key_values", None))


def checks_each_cut(device: torch.device) -> bool:
    """Whether NaN is looked for before a cut: where looking waits for the device it is left to the end."""
    return device.type != "cuda"


def has_pixels(inputs: Mapping[str, Any]) -> bool:
    return any(inputs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
