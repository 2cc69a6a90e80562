"""Calling a term over signals, and comparing what comes out."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.parts import CostTerm, Kernel, Part
from pruneopt.signals import Signals
from pruneopt.tensors import across
from pruneopt.testing.core import CheckFailure, require


def call(part: Part, signals: Signals) -> Tensor:
    """The part's output on a guarded view. Raises CheckFailure when it reads what it did not declare."""
    view = signals.view(part.needs)
    try:
        out = part(view)  # type: ignore[operator]
    except SignalError as error:
        if "without declaring it" in str(error):
            raise CheckFailure(f"{error}; add it to `needs`") from error
        raise
    require(isinstance(out, Tensor), f"returned {type(out).__name__}, not a tensor")
    return out


def layout(part: Part) -> str:
    """`[B,N]`, `[B,N,N]`, or `[B,A,N]`: what this part returns."""
    if isinstance(part, CostTerm):
        return {"pairwise": "[B,N,N]", "unary": "[B,N]", "anchor": "[B,A,N]"}.get(part.shape, part.shape)
    return "[B,N,N]" if isinstance(part, Kernel) else "[B,N]"


def token_axes(part: Part) -> tuple[int, ...]:
    """Axes of the output that run over visual tokens."""
    return {"[B,N]": (1,), "[B,N,N]": (1, 2), "[B,A,N]": (2,)}[layout(part)]


def real_entries(part: Part, signals: Signals, *, out: Tensor) -> Tensor:
    """Bool of the output's shape, True where every token involved is real."""
    return across(signals.mask, token_axes(part), rank=out.dim()).expand(out.shape)


def alone(part: Part, out: Tensor, *, b: int, n: int) -> Tensor:
    """Output of sample b at its first n tokens."""
    out = out[b : b + 1]
    for axis in token_axes(part):
        out = out.narrow(axis, 0, n)
    return out


def agree(one: Tensor, two: Tensor, *, tolerance: float = 1e-4) -> float:
    """Largest difference in units of the spread of `two`; equal infinities agree."""
    require(one.shape == two.shape, f"shapes differ: {list(one.shape)} and {list(two.shape)}")
    one, two = one.double(), two.double()
    same = (one == two) | (one.isnan() & two.isnan())
    finite = two[two.isfinite()]
    scale = float(finite.abs().amax()) if finite.numel() else 1.0
    difference = (one - two).abs().masked_fill(same, 0).nan_to_num(nan=torch.inf)
    return float(difference.amax()) / max(scale, 1e-12) if difference.numel() else 0.0
