"""Random signals that hang together, drawn from what the table of signals says of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.signals import SignalInfo, Signals, Values, signal_info

PREFIX = 3  # tokens before the visual ones
BEHIND = 8  # columns of padding behind the longest sequence
CLUSTERS = 24

Axes = Callable[[SignalInfo, int], Mapping[str, int]]  # of a row, and of so many visual tokens


def make_signals(
    names: Iterable[str],
    *,
    batch: int = 2,
    tokens: int = 12,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    style: str = "random",
    dtype: torch.dtype = torch.float32,
    **sizes: int,
) -> Signals:
    """Small random signals of the given names, one seed per sample.

    Parameters
    ----------
    lengths: real tokens per sample; the rest is padding with zeros.  sizes: see `tiny_axes`.
    style: `random`, `zeros`, `constant` (all tokens equal), `duplicates` (the second half repeats the first),
        `large` (about 1e4, the edge of what half precision holds) or `clusters` (noise around a few centres).
        Shares of attention and whole numbers are what they are whatever the style.
    """
    counts = list(lengths) if lengths is not None else [tokens] * batch
    signals = draw_signals(names, counts, axes=tiny_axes(**sizes), tokens=tokens, seed=seed, style=style)
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in signals.items()}
    return Signals(tensors, signals.mask if lengths is not None else None)


def tiny_axes(*, width: int = 8, heads: int = 2, text: int = 3) -> Axes:
    """Lengths of all axes by letter: `D`, `C`, `c` are `width`, `H` is `heads`, `T` is `text`."""
    sizes = {"D": width, "C": width, "c": width, "d": max(2, width // 2), "H": heads, "T": text}
    return lambda info, n: {**sizes, "N": n, "L": PREFIX + n + text, "S": 2, "M": 16, "P": 4}


def draw_signals(
    names: Iterable[str],
    counts: Sequence[int],
    *,
    axes: Axes,
    tokens: int | None = None,
    seed: int = 0,
    style: str = "random",
) -> Signals:
    """Signals of samples of `counts` visual tokens each, padded to `tokens` (their most, when None)."""
    names = sorted({*names, "xy"})
    width = max(counts) if tokens is None else tokens
    infos = {name: signal_info(name) for name in names}
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for sample, n in enumerate(counts):
        g = torch.Generator().manual_seed(seed + 1000 * sample)
        for name, info in infos.items():
            rows[name].append(_padded(_draw(info, axes(info, n), g=g, style=style), info, tokens=width))
    mask = torch.arange(width) < torch.tensor(counts)[:, None]
    return Signals({name: torch.stack(found) for name, found in rows.items()}, None if mask.all() else mask)


def _draw(info: SignalInfo, axes: Mapping[str, int], *, g: torch.Generator, style: str) -> Tensor:
    """One signal of one sample: the axes of its row without the batch."""
    shape = [int(axis) if axis.isdigit() else axes[axis] for axis in info.axes[1:]]
    tokens, length, sample = axes["N"], shape[0], g.initial_seed() // 1000
    if info.values is Values.CELL:
        cell, (columns, _) = torch.arange(length), grid_of(tokens)
        return torch.stack([cell % columns, cell // columns], 1)
    if info.values is Values.GRID:
        return torch.tensor(grid_of(tokens)).expand(shape)
    if info.values is Values.INDEX:  # text behind the picture
        start = axes["L"] - axes["T"] - (tokens if info.token_dims else 0)
        return torch.arange(length) + start
    if info.values is Values.NUMBER:  # one picture, which is its only crop and frame
        return torch.zeros(shape, dtype=torch.int64)
    if info.values is Values.MASK:  # the last one is padding in every other sample
        return torch.arange(length) < max(1, length - sample % 2)
    if info.values is Values.COUNT:
        return torch.randint(1, 4, shape, generator=g).float()
    draw = (1 + sample % 3) * torch.randn(shape, generator=g)  # samples differ in size: what mixes them shows
    if info.values is Values.SHARES:  # one more key stands for all others, with about a fifth of the whole
        others = torch.randn((*shape[:-1], 1), generator=g) + math.log(shape[-1] / 4)
        return torch.cat([draw, others], -1).softmax(-1)[..., :-1]
    return draw.abs() if info.values is Values.POSITIVE else _styled(draw, info, g=g, style=style)


def _styled(draw: Tensor, info: SignalInfo, *, g: torch.Generator, style: str) -> Tensor:
    if style == "zeros":
        return torch.zeros_like(draw)
    if style == "large":
        return draw.clamp(-4, 4) * 1e4
    for axis in (dim - 1 for dim in info.token_dims):
        index = torch.arange(draw.shape[axis])
        if style == "constant":
            draw = draw.index_select(axis, torch.zeros_like(index))
        elif style == "duplicates":
            draw = draw.index_select(axis, index % ((len(index) + 1) // 2))
        elif style == "clusters":
            shape = (*draw.shape[:axis], CLUSTERS, *draw.shape[axis + 1 :])
            home = torch.randint(CLUSTERS, index.shape, generator=g)
            draw = 0.4 * draw + torch.randn(shape, generator=g).index_select(axis, home)
    return draw


def _padded(tensor: Tensor, info: SignalInfo, *, tokens: int) -> Tensor:
    """Zeros behind the tokens; whole sequences end in masked columns, as models mask padding."""
    for axis in (dim - 1 for dim in info.token_dims):
        shape = list(tensor.shape)
        shape[axis] = tokens - shape[axis]
        tensor = torch.cat([tensor, tensor.new_zeros(shape)], axis)
    if info.values is Values.LOGITS:
        missing = max(0, tokens + PREFIX + BEHIND - tensor.shape[1])
        lowest = torch.finfo(tensor.dtype).min
        tensor = torch.nn.functional.pad(tensor, (0, missing, 0, missing), value=lowest)
    return tensor


def grid_of(tokens: int) -> tuple[int, int]:
    """Columns and rows of the most square whole grid of so many tokens."""
    rows = max(r for r in range(1, math.isqrt(tokens) + 1) if tokens % r == 0)
    return tokens // rows, rows
