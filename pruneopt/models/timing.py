"""How long the encoder, the prefill and the decoding of a model take, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from pruneopt.errors import ModelError
from pruneopt.models.base import adapter_for
from pruneopt.models.hooks import Attachments


@dataclass
class ForwardTimes:
    """Seconds of every call since the timer was attached; the first text-model call is the prefill.

    `encoder` times the vision tower, wherever it is called from: recent `generate` runs it before the model's
    own forward.
    """

    encoder: list[float] = field(default_factory=list)
    text: list[float] = field(default_factory=list)

    @property
    def prefill(self) -> float:
        return self.text[0]

    @property
    def decode(self) -> float:
        """Mean seconds of a decoded token; NaN when nothing was decoded after the first."""
        rest = self.text[1:]
        return sum(rest) / len(rest) if rest else float("nan")


@contextmanager
def timed(model: Any) -> Iterator[ForwardTimes]:
    """Time every forward pass inside the block. Attach before pruning, so that selection is included."""
    adapter, times, attachments = adapter_for(model), ForwardTimes(), Attachments()

    def now() -> float:
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def watch(module: Any, into: list[float]) -> None:
        mark = [0.0]

        def starts(*_: Any) -> None:
            mark[0] = now()

        def ends(*_: Any) -> None:
            into.append(now() - mark[0])

        attachments.before(module, starts)
        attachments.after(module, ends)

    with suppress(ModelError):  # a family without encoder signals still has a prefill to time
        watch(adapter.encoder().tower, times.encoder)
    watch(adapter.text, times.text)
    try:
        yield times
    finally:
        attachments.remove()
