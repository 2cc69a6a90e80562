"""Splitting samples into images, crops or frames, and putting selections back together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals, signal_info


def split_groups(signals: Signals) -> tuple[Signals, Tensor]:
    """One problem per image, crop or frame: samples are split by the `group` signal.

    Returns the new signals and `[G,N']` int64 places of their tokens in the sample, -1 at padding.
    """
    group = signals["group"].masked_fill(~signals.mask, -1)
    places: list[Tensor] = []
    owners: list[int] = []
    for sample, row in enumerate(group):
        for number in row[row >= 0].unique(sorted=True).tolist():
            places.append((row == number).nonzero().squeeze(1))
            owners.append(sample)
    if not places:
        raise SignalError("no visual token is left to choose from")
    place = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)
    return gather_tokens(signals, place, sample=torch.tensor(owners, device=place.device)), place


def gather_tokens(signals: Signals, place: Tensor, *, sample: Tensor) -> Signals:
    """Signals at some tokens: `place` `[G,n]` int64 within the samples `sample` `[G]`, -1 at padding."""
    tensors = {}
    for name in signals:
        tensor = signals[name][sample]
        for dim in signal_info(name).token_dims:
            shape = [1] * tensor.dim()
            shape[0], shape[dim] = place.shape
            index = place.clamp_min(0).view(shape)
            sizes = list(tensor.shape)
            sizes[dim] = place.shape[1]
            tensor = tensor.gather(dim, index.expand(sizes))
        tensors[name] = tensor
    return Signals(tensors, place >= 0, sample=sample)


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
