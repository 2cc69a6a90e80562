"""What the golden tests share: signals from a file, and a ledger that no comparison can slip past."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from fair import Check, ranked
from golden_files import GoldenCase
from torch import Tensor

from pruneopt.problems.selection import Selection
from pruneopt.pruner import Pruner
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


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
        self.case = case
        self.compared: set[str] = set()
        self.left_out: set[str] = set()
        self.beyond: set[str] = set()  # variants of a mode that the project does not have

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

    def same(self, variant: str, name: str, got: Any, fair: Check | None = None) -> None:
        """Equal where the file says stable; else `fair(want, got)` must hold, and there must be a `fair`."""
        key, want, got = f"out.{variant}.{name}", self.want(variant, name), np.asarray(got)
        where = f"{self.case.name} {key}"
        if self.stable(variant, name):
            np.testing.assert_array_equal(got.reshape(want.shape), want, err_msg=where)
        else:
            assert fair is not None, f"{where}: ties or rounding decide; give it a fair comparison"
            self._fairly(fair, want, got.reshape(want.shape), where)
        self.compared.add(key)

    def order(self, variant: str, name: str, got: Any, score: Any) -> None:
        """An order by falling `score`: the same set where stable; equal scores may stand in any order."""
        key, want, got = f"out.{variant}.{name}", self.want(variant, name), np.asarray(got)
        where = f"{self.case.name} {key}"
        if self.stable(variant, name):
            np.testing.assert_array_equal(np.sort(got.reshape(want.shape)), np.sort(want), err_msg=where)
        self._fairly(ranked(score), want, got.reshape(want.shape), where)
        self.compared.add(key)

    def close(
        self,
        variant: str,
        name: str,
        got: Any,
        floor: float = 2e-6,
        *,
        after: tuple[str, ...] = (),
        fair: Check | None = None,
        share: float = 1.0,
    ) -> None:
        """Within four times the float32 to float64 difference of the reference, plus rounding of our own.

        `after`: index outputs that decide this one; where one of them is unstable `fair(want, got)` must
        hold instead.  `share`: part of the rows that must agree, the others within 5% of the largest entry.
        """
        key, want = f"out.{variant}.{name}", self.want(variant, name).astype(np.float64)
        got = np.asarray(got, dtype=np.float64).reshape(want.shape)
        where = f"{self.case.name} {key}"
        self.compared.add(key)
        if not all(self.stable(variant, other) for other in after):
            assert fair is not None, f"{where}: hangs on an unstable choice; give it a fair comparison"
            self._fairly(fair, want, got, where)
            return
        diff = f"f64diff.{variant}.{name}"
        slack = 4 * float(np.max(self.case[diff])) if diff in self.case else 0.0
        scale = max(1.0, float(np.abs(want).max())) if want.size else 1.0
        if share == 1.0:
            np.testing.assert_allclose(got, want, rtol=0, atol=slack + floor * scale, err_msg=where)
            return
        off = np.abs(got - want).max(-1)
        assert (off <= slack + floor * scale).mean() >= share, where
        assert off.max() <= 0.05 * scale + slack, where

    def _fairly(self, fair: Check, want: np.ndarray, got: np.ndarray, where: str) -> None:
        try:
            fair(want, got)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error

    def leave_out(self, variant: str, *names: str, why: str) -> None:
        """Outputs that are not comparable, or that say again what another one says."""
        assert len(why) > 10, "say why"
        self.left_out |= {f"out.{variant}.{name}" for name in names if self.has(variant, name)}

    def leave_out_variant(self, variant: str, why: str) -> None:
        """A whole variant of a mode that the project does not have."""
        every = [key.removeprefix(f"out.{variant}.") for key in self.case.arrays]
        self.leave_out(variant, *every, why=why)
        self.beyond.add(variant)

    def close_book(self) -> int:
        """Number of comparisons; fails for an output never looked at and a variant never compared."""
        every = {key for key in self.case.arrays if key.startswith("out.")}
        assert every, f"{self.case.name} holds no outputs"
        unread = every - self.compared - self.left_out
        assert not unread, f"{self.case.name}: never compared {sorted(unread)}"
        for variant in set(self.variants) - self.beyond:
            start = f"out.{variant}."
            if any(key.startswith(start) for key in every):  # where the release fails there is none
                assert any(key.startswith(start) for key in self.compared), f"{self.case.name}: {variant}"
        return len(self.compared)


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
