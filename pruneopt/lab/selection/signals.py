"""Random signals of realistic widths for timing selections."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pruneopt.signals import Signals, signal_info

WIDTH = 4096  # of the language model
PREFIX = 35  # tokens before the picture
TEXT = 48
ENCODER = {"C": 1024, "H": 16, "d": 64}
DECODER = {"H": 32, "d": 128}
MAP_HEADS = 8  # heads of whole attention maps, so that a batch of them fits in memory


def select_signals(names: Iterable[str], batch: int, tokens: int, seed: int = 0) -> Signals:
    """Signals of the given names: width 4096, a CLIP-L-like encoder, 48 text tokens, square grids.

    Features are noisy clusters, attention rows are shares of a softmax.  One picture per sample.
    """
    generator = torch.Generator().manual_seed(seed)
    side = math.isqrt(tokens)
    cell = torch.arange(tokens)
    fixed = {
        "xy": torch.stack([cell % side, cell // side], 1),
        "grid": torch.tensor([side, -(-tokens // side)]).expand(tokens, 2),
        "group": torch.zeros(tokens, dtype=torch.int64),
        "time": torch.zeros(tokens, dtype=torch.int64),
        "tile": torch.zeros(tokens, 2, dtype=torch.int64),
        "size": torch.ones(tokens),
        "visual_index": cell + PREFIX,
        "text_index": torch.arange(TEXT) + PREFIX + tokens,
        "text_mask": torch.ones(TEXT, dtype=torch.bool),
        "start_mask": torch.ones(tokens, dtype=torch.bool),
    }
    tensors = {}
    for name in sorted({*names, "xy"}):
        base = name.partition("@")[0]
        if base in fixed:
            tensors[name] = fixed[base].expand(batch, *fixed[base].shape)
        else:
            tensors[name] = _draw(base, batch, tokens, generator)
    return Signals(tensors)


def _draw(base: str, batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    encoder = base.startswith(("encoder", "cls", "received", "clip"))
    axes = [axis.strip() for axis in signal_info(base).shape.strip("[]").split(",")][1:]
    sizes = {"N": tokens, "M": tokens, "T": TEXT, "S": 1, "L": tokens + PREFIX + TEXT, "D": WIDTH, "c": 768,
             "P": 14, "3": 3, "2": 2, **DECODER, **(ENCODER if encoder else {})}  # fmt: skip
    sizes.setdefault("C", ENCODER["C"])
    if axes[:1] == ["H"] and axes[1:] in (["N", "N"], ["L", "L"]):
        sizes["H"] = MAP_HEADS
    shape = [batch, *(sizes[axis] for axis in axes)]
    other = ("post_attention_norm", "attention_logits", "lookahead_keys")
    if ("attention" in base or base.startswith("lookahead_")) and base not in other:
        return torch.rand(shape, generator=generator).div_(tokens)
    if axes[:1] == ["N"] and axes[1:] in (["D"], ["C"]):
        centres = torch.randn(batch, 24, shape[2], generator=generator)
        home = torch.randint(24, (batch, tokens), generator=generator)
        noise = torch.randn(shape, generator=generator)
        return centres.gather(1, home[:, :, None].expand(shape)) + 0.4 * noise
    draw = torch.randn(shape, generator=generator)
    return draw.abs() if base in ("transition", "transition_abs", "importance") else draw
