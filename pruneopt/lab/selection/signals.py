"""Random signals of realistic widths for timing selections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pruneopt.signals import Attention, Place, SignalInfo, Signals
from pruneopt.testing.draw import draw_signals

WIDTH = 4096  # of the language model
TEXT = 48
MAP_HEADS = 8  # heads of whole attention maps, so that a batch of them fits in memory
_SIZES = {"T": TEXT, "S": 1, "D": WIDTH, "C": 1024, "c": 768, "P": 14}


def select_signals(names: Iterable[str], *, batch: int, tokens: int, seed: int = 0) -> Signals:
    """Signals of the given names: width 4096, a CLIP-L-like encoder, 48 text tokens behind one picture.

    Features are noisy clusters.
    """

    def axes(info: SignalInfo, tokens: int) -> Mapping[str, int]:
        heads, head = (32, 128) if info.place is Place.DECODER else (16, 64)
        heads = MAP_HEADS if info.attention is Attention.FULL else heads
        sequence = 35 + tokens + TEXT  # a system prompt in front
        return {**_SIZES, "N": tokens, "M": tokens, "L": sequence, "H": heads, "d": head}

    return draw_signals(names, [tokens] * batch, axes=axes, seed=seed, style="clusters")
