"""What the golden tests share: signals from a file, and a ledger that no comparison can slip past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GoldenCase
from torch import Tensor

from pruneopt.pruner import Pruner
from pruneopt.signals import Signals
from pruneopt.solution import Selection
from pruneopt.spec import load_spec


def tensor(value: Any) -> Tensor:
    """A float32, int64 or bool tensor of a stored array."""
    value = np.asarray(value)
    if value.dtype.kind == "f":
        return torch.from_numpy(value.astype(np.float32))
    return torch.from_numpy(value if value.dtype == bool else value.astype(np.int64))


def run(
    method: str,
    tensors: Mapping[str, Tensor],
    overrides: Iterable[str] = (),
    stage: int = 0,
    start: list[int] | None = None,
) -> Selection:
    """One stage of a method on tensors, as `pruneopt.select` runs it, with the unpruned count `start`."""
    spec = load_spec(method, overrides)
    return Pruner(spec.stages[stage]).select(Signals(dict(tensors)), start)


class Ledger:
    """Compares outputs of one case and remembers which; `close_book` fails for anything left out."""

    def __init__(self, case: GoldenCase):
        self.case, self.ticked, self.unstable = case, set(), set()

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        return self.case.param["variants"]

    def want(self, variant: str, name: str) -> np.ndarray:
        return self.case[f"out.{variant}.{name}"]

    def has(self, variant: str, name: str) -> bool:
        return f"out.{variant}.{name}" in self.case

    def stable(self, variant: str, name: str) -> bool:
        flag = f"stable.{variant}.{name}"
        return bool(self.case[flag]) if flag in self.case else True

    def same(
        self, variant: str, name: str, got: Any, fair: Callable[[np.ndarray, np.ndarray], None] | None = None
    ) -> None:
        """Equal where the file says stable; else `fair(want, got)` must hold, or only the size is read."""
        key, want, got = f"out.{variant}.{name}", self.want(variant, name), np.asarray(got)
        where = f"{self.case.name} {key}"
        if self.stable(variant, name):
            np.testing.assert_array_equal(got.reshape(want.shape), want, err_msg=where)
        elif fair is not None:
            fair(want, got)
            self.unstable.add(key)
        else:
            assert got.size == want.size, where
            self.unstable.add(key)
        self.ticked.add(key)

    def close(
        self,
        variant: str,
        name: str,
        got: Any,
        floor: float = 2e-6,
        after: tuple[str, ...] = (),
        share: float = 1.0,
    ) -> None:
        """Within four times the float32 to float64 difference of the reference, plus rounding of our own.

        `after`: index outputs that decide this one; where one of them is unstable only shape and scale are
        looked at.  `share`: part of the rows that must agree, the others within 5% of the largest entry.
        """
        key, want = f"out.{variant}.{name}", self.want(variant, name).astype(np.float64)
        got = np.asarray(got, dtype=np.float64).reshape(want.shape)
        self.ticked.add(key)
        diff = f"f64diff.{variant}.{name}"
        slack = 4 * float(np.max(self.case[diff])) if diff in self.case else 0.0
        scale = max(1.0, float(np.abs(want).max())) if want.size else 1.0
        if not all(self.stable(variant, other) for other in after):
            assert np.isfinite(got).all() and np.abs(got).max(initial=0) <= 2 * scale
            self.unstable.add(key)
            return
        where = f"{self.case.name} {key}"
        if share == 1.0:
            np.testing.assert_allclose(got, want, rtol=0, atol=slack + floor * scale, err_msg=where)
            return
        off = np.abs(got - want).max(-1)
        assert (off <= slack + floor * scale).mean() >= share, where
        assert off.max() <= 0.05 * scale + slack, where

    def fair_score(self, score: Any, slack: float = 1e-5) -> Callable[[np.ndarray, np.ndarray], None]:
        """Unstable index sets must be worth the same: sorted scores agree."""
        score = np.asarray(score)

        def check(want: np.ndarray, got: np.ndarray) -> None:
            a, b = np.sort(score[want.ravel()]), np.sort(score[got.ravel()])
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=slack, err_msg=self.case.name)

        return check

    def leave_out(self, variant: str, *names: str) -> None:
        """Outputs that are not comparable, for a reason given at the call."""
        self.ticked |= {f"out.{variant}.{name}" for name in names if self.has(variant, name)}

    def close_book(self) -> int:
        """Number of comparisons; fails unless every output of the file was compared or left out by name."""
        every = {key for key in self.case.arrays if key.startswith("out.")}
        assert every, f"{self.case.name} holds no outputs"
        assert every == self.ticked, f"{self.case.name}: never compared {sorted(every - self.ticked)}"
        return len(self.ticked)


def rotary_rows(
    hidden: Tensor, wq: Tensor, wk: Tensor, heads: int, eps: float, base: float, rows: Tensor
) -> Tensor:
    """Attention `[1,H,R,L]` of some rows of `hidden` `[1,L,D]`: RMS norm, rotary embedding from place 0."""
    normed = hidden * (hidden.square().mean(2, keepdim=True) + eps).rsqrt()
    length, width = hidden.shape[1], hidden.shape[2] // heads
    q = (normed @ wq.T).view(1, length, heads, width).transpose(1, 2)
    k = (normed @ wk.T).view(1, length, heads, width).transpose(1, 2)
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    angle = torch.cat([angle, angle], 1)

    def turned(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], 3)
        return x * angle.cos() + half * angle.sin()

    q, k = turned(q)[:, :, rows], turned(k)
    logits = q @ k.transpose(2, 3) / width**0.5
    hidden_from = torch.arange(length)[None, :] > rows[:, None]
    return logits.masked_fill(hidden_from, torch.finfo(torch.float32).min).softmax(3)


__all__ = ["GoldenCase", "Ledger", "pytest", "rotary_rows", "run", "tensor"]
