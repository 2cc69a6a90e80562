"""Whether numbers are what the table of signals says of them, without a look at how they were made."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.signals import SIGNALS, Values


def odd(name: str, tensor: Tensor, mask: Tensor) -> str:
    """What is wrong with the values `[B,...]` of a signal at the tokens of `mask` `[B,N]`, or empty."""
    info = SIGNALS[name.partition("@")[0]]
    for sample, real in zip(tensor, mask, strict=True):
        for dim in info.token_dims:
            sample = sample.index_select(dim - 1, real.nonzero().squeeze(1))
        if found := _odd(info.values, sample):
            return found
    return ""


def _odd(values: Values, tensor: Tensor) -> str:
    low = torch.finfo(tensor.dtype).min if tensor.is_floating_point() else None
    if values is Values.MASK:
        return "" if tensor.dtype == torch.bool else "not bool"
    if not tensor.isfinite().all():
        return "not finite"
    if values is Values.LOGITS:
        return "" if (tensor == low).any() and (tensor.abs() < 1e3).any() else "nothing masked"
    if values is Values.REAL:
        return ""
    if values in (Values.POSITIVE, Values.SHARES):
        sums = tensor.double().sum(-1)
        good = (tensor >= 0).all() and (values is Values.POSITIVE or (sums < 1 + 1e-5).all())
        return "" if tensor.is_floating_point() and good else "negative, or more than one"
    if not (tensor == tensor.round()).all():
        return "no whole numbers"
    if values is Values.INDEX:
        return "" if (tensor >= 0).all() else "no columns"
    least = {Values.COUNT: 1, Values.GRID: 1, Values.CELL: 0, Values.NUMBER: -1}[values]
    return "" if (tensor >= least).all() else f"below {least}"
