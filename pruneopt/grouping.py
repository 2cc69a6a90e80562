"""Splitting samples into images, crops or frames, and putting selections back together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals, signal_info


def split_groups(signals: Signals, names: Iterable[str] | None = None) -> tuple[Signals, Tensor]:
    """One problem per image, crop or frame: samples are split by the `group` signal.

    Returns the new signals (those of `names`, all when None) and `[G,N']` int64 places of their tokens in the
    sample, -1 at padding.
    """
    group = signals["group"].masked_fill(~signals.mask, -1)
    number, order = group.sort(dim=1, stable=True)
    real = number >= 0
    if not real.any():
        raise SignalError("no visual token is left to choose from")
    # Listed by group: a problem begins where the number is another one, and lies in one run.
    first = real.clone()
    first[:, 1:] &= number[:, 1:] != number[:, :-1]
    sample, start = first.nonzero().unbind(1)
    size = torch.bincount((first.flatten().cumsum(0) - 1)[real.flatten()])
    slot = torch.arange(int(size.max()), device=group.device)
    inside = slot < size[:, None]
    where = (start[:, None] + slot).clamp_max(group.shape[1] - 1)
    place = order[sample[:, None], where].masked_fill(~inside, -1)
    names = list(signals) if names is None else names
    return gather_tokens(signals, place, sample=sample, names=names), place


def gather_tokens(
    signals: Signals, place: Tensor, *, sample: Tensor, names: Iterable[str] | None = None
) -> Signals:
    """Signals at some tokens: `place` `[G,n]` int64 within the samples `sample` `[G]`, -1 at padding.

    Those of `names`; all when None.
    """
    tensors, index = {}, place.clamp_min(0)
    whole = _in_one_piece(signals, place, sample=sample)
    for name in signals if names is None else names:
        tensor, dims = signals[name], signal_info(name).token_dims
        if not dims:
            tensors[name] = tensor[sample]
            continue
        if whole and len(dims) == 1:
            tensors[name] = _cut(tensor, dims[0], length=place.shape[1])
            continue
        # One read over samples and the first axis of tokens; maps of pairs have a second one.
        tensor = tensor.movedim(dims[0], 1)[sample[:, None], index].movedim(1, dims[0])
        for dim in dims[1:]:
            shape, sizes = [1] * tensor.dim(), list(tensor.shape)
            shape[0], shape[dim] = place.shape
            sizes[dim] = place.shape[1]
            tensor = tensor.gather(dim, index.view(shape).expand(sizes))
        tensors[name] = tensor
    padded = not whole or not any(signal_info(name).token_dims for name in tensors)
    return Signals(tensors, place >= 0 if padded else None, sample=sample)


def _in_one_piece(signals: Signals, place: Tensor, *, sample: Tensor) -> bool:
    """Whether the problems are the samples cut into equal lengths, in order; waits for the device."""
    if place.numel() != signals.batch * signals.tokens:
        return False
    every = torch.arange(signals.batch * signals.tokens, device=place.device).view_as(place)
    return torch.equal(place + signals.tokens * sample[:, None], every)


def _cut(tensor: Tensor, dim: int, *, length: int) -> Tensor:
    """Axis `dim` cut into pieces of `length`, each a sample of its own; a view of a batch of one."""
    return tensor.unflatten(dim, (-1, length)).movedim(dim, 1).flatten(0, 1)


def join_groups(selection: Selection, place: Tensor, *, sample: Tensor, batch: int, tokens: int) -> Selection:
    """Undo `split_groups` on a selection."""
    real = place >= 0
    rows = sample[:, None].expand_as(place)[real]
    cols = place[real]

    def scatter(values: Tensor | None, fill: float) -> Tensor | None:
        if values is None:
            return None
        out = values.new_full((batch, tokens), fill)
        out[rows, cols] = values[real]
        return out

    merge = None
    if selection.merge is not None:
        merge = selection.merge.new_zeros(batch, tokens, tokens)
        pair = real[:, :, None] & real[:, None, :]
        left = place[:, :, None].expand_as(pair)[pair]
        right = place[:, None, :].expand_as(pair)[pair]
        merge[sample[:, None, None].expand_as(pair)[pair], left, right] = selection.merge[pair]
    counts = None
    if selection.counts is not None:
        sums = [0] * batch
        for owner, count in zip(sample.tolist(), selection.counts, strict=True):
            sums[owner] += count
        counts = tuple(sums)
    keep = scatter(selection.keep, False)
    assert keep is not None
    return replace(
        selection,
        keep=keep,
        counts=counts,
        importance=scatter(selection.importance, float("nan")),
        merge=merge,
        size=scatter(selection.size, 1.0),
        rank=scatter(selection.rank, 0.0),
    )
