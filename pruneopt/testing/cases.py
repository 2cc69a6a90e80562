"""Inputs of the checks: signals that hang together, transport and subset problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pruneopt.grouping import gather_tokens
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals, Values, signal_info
from pruneopt.tensors import across
from pruneopt.testing.draw import make_signals as make_signals

MEASURED = (Values.REAL, Values.POSITIVE, Values.SHARES, Values.LOGITS)
FILLS = ("below", "between", "above")
STYLES = ("random", "zeros", "constant", "duplicates", "large")


def shuffle(count: int, seed: int) -> Tensor:
    """A random permutation `[count]` that leaves no index where it was."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    out = torch.empty_like(order)
    out[order] = order.roll(1)
    return out


def sample_alone(signals: Signals, b: int) -> Signals:
    """Sample b without its padding."""
    n = int(signals.mask[b].sum())
    tensors = {}
    for name in signals:
        tensor = signals[name][b : b + 1]
        for axis in signal_info(name).token_dims:
            tensor = tensor.narrow(axis, 0, n)
        if signal_info(name).values is Values.LOGITS:
            length = int((tensor[0, 0].diagonal() > torch.finfo(tensor.dtype).min).sum())
            tensor = tensor[:, :, :length, :length]
        tensors[name] = tensor
    return Signals(tensors)


def permuted(signals: Signals, order: Tensor) -> Signals:
    """The same tokens in another order `[N]`, coordinates and mask included."""
    tensors = {}
    for name in signals:
        tensor = signals[name]
        for axis in signal_info(name).token_dims:
            tensor = tensor.index_select(axis, order)
        tensors[name] = tensor
    return Signals(tensors, signals.mask[:, order] if signals.ragged else None)


def with_tensors(signals: Signals, changed: dict[str, Tensor]) -> Signals:
    """The same signals with some tensors replaced."""
    tensors = {name: changed.get(name, signals[name]) for name in signals}
    return Signals(tensors, signals.mask if signals.ragged else None, sample=signals.sample)


def garbage_in_padding(signals: Signals, seed: int = 5) -> Signals:
    """The same signals with other finite values at padded tokens."""
    g = torch.Generator().manual_seed(seed)
    changed = {}
    for name in signals:
        tensor = signals[name]
        noise = (7 * torch.randn(tensor.shape, generator=g)).abs()
        noise = noise.to(tensor.dtype) if tensor.is_floating_point() else torch.zeros_like(tensor)
        changed[name] = torch.where(real_entries(name, signals), tensor, noise)
    return with_tensors(signals, changed)


def spread(signals: Signals, fill: str, *, seed: int = 3) -> tuple[Signals, Tensor]:
    """Ragged samples with padding between their tokens instead of after them.

    Floating-point signals hold at padding numbers below, between or above all real ones (`fill`).  Returns
    the new signals and `[B,N]` int64, the old place of every token, -1 at padding; tokens keep their order.
    """
    g = torch.Generator().manual_seed(seed)
    old = torch.full(signals.mask.shape, -1)
    for row, real in zip(old, signals.mask, strict=True):
        tokens = real.nonzero().squeeze(1)
        row[torch.randperm(len(row), generator=g)[: len(tokens)].sort().values] = tokens
    moved = gather_tokens(signals, old, sample=torch.arange(signals.batch))
    return with_tensors(moved, {name: filled(name, moved, fill=fill) for name in floating(moved)}), old


def filled(name: str, signals: Signals, *, fill: str) -> Tensor:
    """A floating-point signal with its padding below, between or above its real entries."""
    return fill_out(signals[name], real_entries(name, signals), fill=fill)


def real_entries(name: str, signals: Signals) -> Tensor:
    """Bool of a signal's shape, True where every token involved is real."""
    tensor = signals[name]
    return across(signals.mask, signal_info(name).token_dims, rank=tensor.dim()).expand(tensor.shape)


def fill_out(values: Tensor, real: Tensor, *, fill: str) -> Tensor:
    """`values` with entries that are not `real` below, between or above those that are."""
    low, high = values[real].min(), values[real].max()
    width = high - low + 1
    return values.where(
        real, {"below": low - width, "between": (low + high) / 2, "above": high + width}[fill]
    )


def floating(signals: Signals) -> list[str]:
    """Names of the signals that carry features, attention or scores."""
    return [n for n in signals if signal_info(n).values in MEASURED and signals[n].is_floating_point()]


# -- transport ------------------------------------------------------------------------------------------


def _masses(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    mass = torch.rand(shape, generator=g, dtype=torch.float64) + 0.3
    return mass / mass.sum(1, keepdim=True)


def transport(
    family: str = "random",
    *,
    batch: int = 2,
    rows: int = 12,
    cols: int = 12,
    seed: int = 0,
    uniform: bool = False,
    dtype: torch.dtype = torch.float64,
) -> TransportProblem:
    """A transport problem with unequal marginals (equal ones with `uniform`).

    Families: `random` in [-0.5, 0.5]; `offset`, a range of 1e-3 on 10; `clustered`, squared distances of
    points in a few heaps; `ties`, whole numbers 0 to 2; `zero_mass`, a source and a target without mass.
    """
    g = torch.Generator().manual_seed(seed)
    shape = (batch, rows, cols)
    a, b = _masses((batch, rows), g), _masses((batch, cols), g)
    cost = torch.rand(shape, generator=g, dtype=torch.float64) - 0.5
    if family == "offset":
        cost = 10 + 1e-3 * (cost + 0.5)
    elif family == "clustered":
        heaps = torch.randn(batch, 3, 4, generator=g, dtype=torch.float64)
        x = heaps[:, torch.arange(rows) % 3] + 0.1 * torch.randn(batch, rows, 4, generator=g)
        y = heaps[:, torch.arange(cols) % 3] + 0.1 * torch.randn(batch, cols, 4, generator=g)
        cost = torch.cdist(x, y).square()
    elif family == "ties":
        cost = torch.randint(0, 3, shape, generator=g).double()
    if uniform:
        a, b = torch.full_like(a, 1 / rows), torch.full_like(b, 1 / cols)
    elif family == "zero_mass":
        a[:, 1], b[:, -1] = 0, 0
        a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    return TransportProblem.build(cost.to(dtype), a=a.to(dtype), b=b.to(dtype))


def ragged(
    problem: TransportProblem, sizes: Sequence[int]
) -> tuple[TransportProblem, list[TransportProblem]]:
    """A square problem with so many atoms per sample and padding behind, and each of its samples alone."""
    mask = torch.arange(problem.cost.shape[1]) < torch.tensor(sizes)[:, None]
    a, b = problem.a * mask, problem.b * mask
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    alone = [
        TransportProblem.build(problem.cost[i : i + 1, :n, :n], a=a[i : i + 1, :n], b=b[i : i + 1, :n])
        for i, n in enumerate(sizes)
    ]
    return TransportProblem.build(problem.cost, a=a, b=b, row_mask=mask, col_mask=mask), alone


def transport_optimum(problem: TransportProblem) -> Tensor:
    """`[B]` float64 optimum by a linear program (HiGHS through SciPy): the witness."""

    def flat(values: Tensor) -> tuple[float, ...]:
        return tuple(values.double().flatten().tolist())

    return torch.tensor(
        [
            _witness(tuple(c.shape), flat(c), a=flat(a), b=flat(b))
            for c, a, b in zip(problem.cost, problem.a, problem.b, strict=True)
        ],
        dtype=torch.float64,
    )


@cache
def _witness(
    shape: tuple[int, int], cost: tuple[float, ...], *, a: tuple[float, ...], b: tuple[float, ...]
) -> float:
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    rows, cols = shape
    each_row = kron(eye_array(rows), np.ones((1, cols)))
    each_col = kron(np.ones((1, rows)), eye_array(cols))
    matrix = vstack([each_row, each_col]).tocsr()[:-1]
    mass = np.concatenate([np.array(a) / sum(a), np.array(b) / sum(b)])[:-1]
    low, unit = min(cost), max(cost) - min(cost) or 1.0  # the tolerances of HiGHS are absolute
    scaled = (np.array(cost) - low) / unit
    result = linprog(scaled, A_eq=matrix, b_eq=mass, bounds=(0, None), method="highs")
    return float(result.fun) * unit + low


# -- subsets --------------------------------------------------------------------------------------------


def subset(kind: str, **how: Any) -> SubsetProblem:
    """A random problem of this kind, drawn as the fields of `Drawn` say."""
    return Drawn(**how).of(kind)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A subset problem over random unit vectors, with scores in [0.1, 1.1] whatever the kind.

    `protect` protects token 2; `duplicates`: the second half of the tokens repeats the first; `metric`:
    Euclidean distances of points in the plane.
    """

    batch: int = 2
    tokens: int = 12
    k: int = 5
    seed: int = 0
    lengths: Sequence[int] | None = None
    protect: bool = False
    duplicates: bool = False
    metric: bool = False
    dtype: torch.dtype = torch.float64

    def of(self, kind: str) -> SubsetProblem:
        g = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.batch, self.tokens, 16, generator=g, dtype=torch.float64)
        unary = torch.rand(self.batch, self.tokens, generator=g, dtype=torch.float64) + 0.1
        place = torch.arange(self.tokens)
        if self.duplicates:
            twice = place % ((self.tokens + 1) // 2)
            x, unary = x[:, twice], unary[:, twice]
        x = x / x.norm(dim=2, keepdim=True)
        terms = find_kind(kind).draw(x, unary, k=self.k)
        terms["unary"] = unary.to(self.dtype)
        if self.metric:
            terms["pairwise"] = torch.cdist(x[:, :, :2], x[:, :, :2])
        if (pairwise := terms.get("pairwise")) is not None:
            terms["pairwise"] = pairwise.to(self.dtype)
        if self.lengths is not None:
            terms["mask"] = place < torch.tensor(list(self.lengths))[:, None]
        if self.protect:
            terms["protected"] = (place == 2).expand(self.batch, -1)
        return SubsetProblem.build(kind, self.k, **terms)
