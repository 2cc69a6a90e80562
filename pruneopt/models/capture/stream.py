"""Signals of the stream of hidden states: as it enters the first layer, and as it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from pruneopt.models.columns import Columns
from pruneopt.signals import signal_info


@dataclass(frozen=True)
class Stream:
    """Hidden states `[B,W,D]` and what stands in their columns."""

    columns: Columns
    hidden: Tensor


def _visual(stream: Stream) -> Tensor:
    return stream.columns.visual(stream.hidden)


def _texts(stream: Stream) -> Tensor:
    return stream.columns.texts(stream.hidden)


STREAM_SIGNALS: dict[str, Callable[[Stream], Tensor]] = {
    "features": _visual,
    "text_features": _texts,
    "text_mask": lambda stream: stream.columns.text >= 0,
    "text_index": lambda stream: stream.columns.text.clamp_min(0),
    "visual_index": lambda stream: stream.columns.place.clamp_min(0),
    "embeddings": _visual,
    "text_embeddings": _texts,
    "start_embeddings": _visual,
    "start_mask": lambda stream: stream.columns.mask,
}


def signals_of(capture: str, names: Iterable[str], *, stream: Stream) -> dict[str, Tensor]:
    """Those of the signals `names` that are made from `capture`: `start` or `now`."""
    return {
        name: STREAM_SIGNALS[name.partition("@")[0]](stream)
        for name in sorted(names)
        if signal_info(name).made_from == (capture,)
    }
