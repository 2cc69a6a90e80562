"""One pass over a prompt: signals are captured, cuts are made, a report is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import remember
from pruneopt.models.decoder import Captured, DecoderCapture
from pruneopt.models.encoder_signals import EncoderCapture
from pruneopt.models.flow import Flow, segment_mask
from pruneopt.models.prompt import read_prompt, refuse_without_text
from pruneopt.models.report import Report, measure
from pruneopt.pruner import Clock
from pruneopt.spec import Spec


class Prefill:
    """State of one pass over a prompt, made when it begins and dropped when it ends, by whatever road.

    Raises InputError and ModelError on construction for prompts that cannot be pruned.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        spec: Spec,
        inputs: Mapping[str, Any],
        decoder: DecoderCapture,
        encoder: EncoderCapture | None,
        *,
        clock: Callable[[], Clock],
    ):
        prompt = read_prompt(adapter, inputs)
        refuse_without_text(prompt, spec.needs)
        self.adapter, self.spec, self.inputs = adapter, spec, inputs
        self.decoder, self.encoder, self.captured = decoder, encoder, Captured()
        self.flow = Flow(adapter, spec, prompt, clock, checks_each_cut(prompt.place.device))
        self.masks: dict[int, Any] = {}

    def text_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Encoder signals are ready; deepstack features are taken over from the text model."""
        flow = self.flow
        if self.encoder is not None:
            start = time.perf_counter()
            with torch.no_grad():
                flow.store.update(self.encoder.collect(self.inputs, flow.prompt))
                flow.crop = self.encoder.crops(self.inputs, flow.prompt)
            flow.timed("encoder signals", start)
        added = self.adapter.take_deepstack(kwargs)
        if added is None:
            return None
        flow.set_deepstack(*added)
        return args, self.adapter.without_deepstack(kwargs)

    def positions_are(self, ids: Tensor) -> None:
        """Position ids `[B or 1,W]` or `[A,B,W]` that the rotary embedding is asked for."""
        if self.flow.positions is None:
            self.flow.positions = ids if ids.dim() == 3 else ids[None]

    def before_layer(self, index: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """Cut where the spec says so; the hidden states that enter and the arguments that change with them,
        None before the first cut.
        """
        flow, cache = self.flow, kwargs.get("past_key_values")
        if flow.rotary is None:
            flow.rotary = kwargs["position_embeddings"]
        if index == 0:
            self._entry(hidden)
        for stage in self.spec.stages:
            if stage.insertion.layer_index == index:
                hidden = flow.cut(stage, hidden)
                self.masks.clear()
        if index in self.decoder.plan:
            self.captured.keep(index, "in", hidden)
        segment = flow.state.at(index)
        if segment is None:
            return None
        if cache is not None:
            remember(cache, flow.state)
        if segment.layer not in self.masks:
            self.masks[segment.layer] = segment_mask(self.adapter, segment, hidden, 0, None)
        mask = self.masks[segment.layer]
        changed = {
            "attention_mask": mask, "position_embeddings": segment.rotary, "position_ids": None
        }  # fmt: skip
        return hidden, changed

    def after_layer(self, index: int, output: Tensor) -> Tensor | None:
        """Add deepstack features, then compute the signals of this layer."""
        flow = self.flow
        added = index < len(flow.deepstack)
        if added:
            output = flow.add_deepstack(index, output)
        if index in self.decoder.plan:
            start = time.perf_counter()
            self.captured.keep(index, "out", output)
            with self.captured.closed(index) as raw:
                found = self.decoder.compute(index, flow.view(), raw)
            flow.store.update({(base, index): tensor for base, tensor in found.items()})
            flow.timed("signals", start)
        return output if added else None

    def finish(self, output: Any) -> tuple[Flow, Report] | None:
        """The deferred NaN check, then the results; None when the model did not run every cut.

        Raises SignalError when a signal was NaN or infinite.
        """
        flow = self.flow
        if len(flow.cuts) != len(self.spec.stages):
            return None
        if flow.bad is not None and bool(flow.bad):
            raise SignalError(
                "a signal holds NaN or infinity; the output of this pass must not be used. Check the model's "
                "dtype (try float32 or bfloat16) and its inputs"
            )
        flow.store = {key: value for key, value in flow.store.items() if key == ("size", None)}
        for segment in flow.state.segments:
            segment.rotary = None
        return flow, measure(self.adapter, flow, getattr(output, "past_key_values", None))

    def _entry(self, hidden: Tensor) -> None:
        flow, needs = self.flow, {name.partition("@")[0] for name in self.spec.needs}
        if needs & {"embeddings", "text_embeddings", "start_embeddings", "start_mask"}:
            view = flow.view()
            flow.store["embeddings", None] = view.visual(hidden).detach()
            flow.store["text_embeddings", None] = view.texts(hidden).detach()
            flow.store["start_embeddings", None] = flow.store["embeddings", None]
            flow.store["start_mask", None] = flow.mask


def checks_each_cut(device: torch.device) -> bool:
    """Whether NaN is looked for before a cut: where looking waits for the device it is left to the end."""
    return device.type != "cuda"
