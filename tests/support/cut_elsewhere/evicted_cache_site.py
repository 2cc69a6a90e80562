"""What: after the prompt, keys and values of some layers lose what a selection drops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import remember
from pruneopt.models.columns import take
from pruneopt.models.outcome import Cut
from pruneopt.models.prefill import Prefill
from pruneopt.models.sequence import Segment
from pruneopt.models.sites import Site
from pruneopt.spec.schema import Spec, StageSpec


class EvictedCacheSite(Site):
    """Keys are turned to their places when they are cached: survivors keep them."""

    name: ClassVar[str] = "evicted_cache"

    def __init__(self, adapter: ModelAdapter, spec: Spec):
        super().__init__(adapter, spec)
        depth = len(adapter.layers)
        first = max((s.insertion.layer_index for s in spec.stages if s.insertion.depth < (2, 0)), default=0)
        for stage in self.stages:
            layers = self.of(stage)
            if not all(first <= layer < depth for layer in layers):
                raise ModelError(
                    f"insertion.layers={list(layers)}: caches can be cut in layers {first} (where the last "
                    f"cut of the prompt is) to {depth - 1}"
                )
            if spec.positions_at(stage) != "keep":
                raise ModelError(
                    "keys in a cache hold their positions already; set positions: keep at this stage"
                )
        every = [layer for stage in self.stages for layer in self.of(stage)]
        if len(set(every)) < len(every):
            raise ModelError(f"a cache is cut once, but insertion.layers name {sorted(every)}")

    @staticmethod
    def of(stage: StageSpec) -> tuple[int, ...]:
        insertion: Any = stage.insertion
        return tuple(sorted(insertion.layers))

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(layer for stage in self.stages for layer in self.of(stage))

    def finish(self, run: Prefill) -> None:
        if run.cache is None:
            raise ModelError("evicted_cache needs a cache; call the model with use_cache=True")
        for stage in self.stages:
            clock, layers = run.clock(), self.of(stage)
            selection = run.choose(stage, torch.empty(0), clock=clock)
            columns, move = run.columns.after(selection.keep, selection.known_counts)
            before = run.state.at(layers[0]) or Segment(0, run.columns.valid, run.columns.full)
            for layer in layers:
                held = run.cache.layers[layer]
                held.keys, held.values = take(held.keys, move.order, 2), take(held.values, move.order, 2)
                if all(segment.layer != layer + 1 for segment in run.state.segments):
                    run.state.cut(replace(before, layer=layer + 1))
                run.state.cut(Segment(layer, columns.valid, columns.full, before.following))
            cut = Cut.of(stage, selection, columns=columns)
            run.done(replace(cut, layer=len(self.adapter.layers), evicted=layers), clock=clock)
        remember(run.cache, run.state)
