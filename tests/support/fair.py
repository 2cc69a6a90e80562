"""Fair comparisons where ties or rounding decide: what two choices are worth, within a bound.

Each function returns `check(want, got)`, which fails when the choice in `got` is not worth that in `want`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Check = Callable[[np.ndarray, np.ndarray], None]
ROUNDING = 1e-6  # of the largest score: a few units in the last place of float32


def batched(value: Any, dims: int) -> np.ndarray:
    """An array with a batch axis in front."""
    value = np.asarray(value)
    return value if value.ndim == dims + 1 else value.reshape(-1, *value.shape[value.ndim - dims :])


def picks(value: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Indices per sample, from rows of indices or from masks over `tokens`."""
    rows = batched(value, 1)
    if rows.dtype == bool:
        assert rows.shape[1] == tokens
        return [np.flatnonzero(row) for row in rows]
    return list(rows)


def same_worth(score: Any, slack: float = ROUNDING) -> Check:
    """Sets without repeats whose sorted scores `[N]` or `[B,N]` agree."""
    score = batched(score, 1).astype(np.float64)

    def check(want: np.ndarray, got: np.ndarray) -> None:
        theirs, ours = picks(want, score.shape[1]), picks(got, score.shape[1])
        assert len(theirs) == len(ours) == len(score)
        for row, a, b in zip(score, theirs, ours, strict=True):
            assert len(np.unique(b)) == len(b), "a token is listed twice"
            np.testing.assert_allclose(np.sort(row[b]), np.sort(row[a]), rtol=0, atol=slack * abs(row).max())

    return check


def ranked(score: Any, slack: float = ROUNDING) -> Check:
    """Orders that differ by swaps of equal scores only: place by place the same score."""
    score = batched(score, 1).astype(np.float64)

    def check(want: np.ndarray, got: np.ndarray) -> None:
        same_worth(score, slack)(want, got)
        for row, a, b in zip(score, batched(want, 1), batched(got, 1), strict=True):
            np.testing.assert_allclose(row[b], row[a], rtol=0, atol=slack * abs(row).max())

    return check


def tie_of(gain: Callable[[int, list[int]], np.ndarray], slack: float) -> Check:
    """Greedy orders: where they part, both picks gain the same; `gain(sample, picked)` is `[N]`.

    After a tie the two walks are different walks, each right.
    """

    def check(want: np.ndarray, got: np.ndarray) -> None:
        theirs, ours = batched(want, 1), batched(got, 1)
        assert theirs.shape == ours.shape
        for b in range(len(ours)):
            assert len(np.unique(ours[b])) == len(ours[b]), "a token is listed twice"
            apart = np.flatnonzero(theirs[b] != ours[b])
            if apart.size:
                t = int(apart[0])
                worth = gain(b, ours[b, :t].tolist())
                assert abs(worth[theirs[b, t]] - worth[ours[b, t]]) <= slack, f"pick {t} is no tie"

    return check


def no_worse(value: Callable[[int, np.ndarray], float], slack: float) -> Check:
    """Sets whose objective `value(sample, indices)`, larger is better, is not below by more than `slack`."""

    def check(want: np.ndarray, got: np.ndarray) -> None:
        rows = list(zip(batched(want, 1), batched(got, 1), strict=True))
        assert rows
        for b, (theirs, ours) in enumerate(rows):
            assert len(np.unique(ours)) == ours.size == theirs.size
            a, c = value(b, theirs), value(b, ours)
            assert c >= a - slack, f"ours is worth {c}, theirs {a}"

    return check


def rows_in_common(share: float, tolerance: float = 1e-5) -> Check:
    """At least `share` of the rows of `want` `[*,R,D]` stand, in any place, among those of `got`."""

    def check(want: np.ndarray, got: np.ndarray) -> None:
        assert want.shape == got.shape and np.isfinite(got).all()
        width = want.shape[-1]
        atol = tolerance * max(1.0, float(np.abs(want).max()))
        for a, b in zip(want.reshape(-1, *want.shape[-2:]), got.reshape(-1, *got.shape[-2:]), strict=True):
            far = np.abs(a.reshape(-1, 1, width) - b.reshape(1, -1, width)).max(-1)
            found = float((far.min(1) <= atol).mean())
            assert found >= share, f"{found:.3f} of the rows agree, {share} must"

    return check


def cosines(x: Any) -> np.ndarray:
    """`[N,N]` float64 cosines of the rows of `x` `[N,D]`."""
    x = np.asarray(x, dtype=np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T
