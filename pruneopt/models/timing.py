"""How long the encoder, the prefill and the decoding of a model take, seen from outside.

Reports and benchmarks both read this one; whole jobs are timed by `pruneopt.lab.clock`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pruneopt.models.base import adapter_for
from pruneopt.models.hooks import Attachments

_TOWERS = ("vision_tower", "visual", "vision_model")


@dataclass
class Calls:
    """Wall and processor seconds of every call of a module; processor seconds ignore other programs."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


@dataclass
class ForwardTimes:
    """Every call since the timer was attached; the first text-model call is the prefill.

    `encoder` is the vision tower, wherever it is called from: recent `generate` runs it before the model's
    own forward.
    """

    encoder: Calls = field(default_factory=Calls)
    text: Calls = field(default_factory=Calls)

    @property
    def prefill(self) -> float:
        return self.text.wall[0]

    @property
    def decode(self) -> float:
        """Mean seconds of a decoded token; NaN when nothing was decoded after the first."""
        rest = self.text.wall[1:]
        return sum(rest) / len(rest) if rest else float("nan")


@contextmanager
def timed(model: Any) -> Iterator[ForwardTimes]:
    """Time every forward pass inside the block. Attach before pruning, so that selection is included."""
    adapter, times, attachments = adapter_for(model), ForwardTimes(), Attachments()

    def now() -> tuple[float, float]:
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def watch(module: Any, into: Calls) -> None:
        mark = [(0.0, 0.0)]

        def starts(*_: Any) -> None:
            mark[0] = now()

        def ends(*_: Any) -> None:
            wall, processor = now()
            into.wall.append(wall - mark[0][0])
            into.processor.append(processor - mark[0][1])

        attachments.before(module, starts)
        attachments.after(module, ends)

    tower = next((getattr(adapter.base, name) for name in _TOWERS if hasattr(adapter.base, name)), None)
    if tower is not None:
        watch(tower, times.encoder)
    watch(adapter.text, times.text)
    try:
        yield times
    finally:
        attachments.remove()
