"""Inputs of the checks: signals that hang together, transport and subset problems."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from pruneopt.grouping import gather_tokens
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals, signal_info

GEOMETRY = frozenset({"xy", "grid", "group", "time", "tile", "visual_index", "text_index", "size"})
MASKS = frozenset({"text_mask", "start_mask"})
FILLS = ("below", "between", "above")
STYLES = ("random", "zeros", "constant", "duplicates", "large")
PREFIX = 3  # tokens before the visual ones


def grid_of(tokens: int) -> tuple[int, int]:
    """Columns and rows of the most square whole grid of so many tokens."""
    rows = max(r for r in range(1, math.isqrt(tokens) + 1) if tokens % r == 0)
    return tokens // rows, rows


def make_signals(
    names: Iterable[str],
    batch: int = 2,
    tokens: int = 12,
    width: int = 8,
    heads: int = 2,
    text: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    lengths: Sequence[int] | None = None,
    style: str = "random",
) -> Signals:
    """Random signals of the given names, consistent with each other, one seed per sample.

    `lengths`: real tokens per sample; the rest is padding with zeros.  `style`: `random`, `zeros`,
    `constant` (all tokens equal), `duplicates` (the second half repeats the first) or `large` (about 1e4,
    the edge of what half precision holds).  Attention rows are shares of a softmax whatever the style.
    """
    names = sorted(set(names) | {"xy"})
    counts = list(lengths) if lengths is not None else [tokens] * batch
    rows = [_sample(names, n, width, heads, text, seed + 1000 * b, style) for b, n in enumerate(counts)]
    tensors = {}
    for name in names:
        parts = [_pad(name, row[name], tokens) for row in rows]
        tensors[name] = torch.stack(parts)
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(dtype)
    mask = torch.arange(tokens) < torch.tensor(counts)[:, None]
    return Signals(tensors, mask if lengths is not None else None)


def is_attention(base: str) -> bool:
    """Whether a signal holds shares of a softmax."""
    other = ("post_attention_norm", "attention_logits", "lookahead_keys")
    return ("attention" in base or "lookahead" in base) and base not in other


def _pad(name: str, tensor: Tensor, tokens: int) -> Tensor:
    for axis in signal_info(name).token_dims:
        missing = tokens - tensor.shape[axis - 1]
        if missing:
            shape = list(tensor.shape)
            shape[axis - 1] = missing
            tensor = torch.cat([tensor, tensor.new_zeros(shape)], axis - 1)
    if signal_info(name).shape == "[B,H,L,L]":  # padding after the whole sequence, masked as models mask it
        missing = tokens + PREFIX + 8 - tensor.shape[1]
        lowest = torch.finfo(torch.float32).min
        tensor = torch.nn.functional.pad(tensor, (0, missing, 0, missing), value=lowest)
    return tensor


def _sample(
    names: Sequence[str], n: int, width: int, heads: int, text: int, seed: int, style: str
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = {"N": n, "T": text, "S": 2, "M": 16, "H": heads, "D": width, "C": width, "c": width,
             "d": max(2, width // 2), "P": 4, "2": 2, "3": 3, "L": n + PREFIX + text}  # fmt: skip
    columns, rows = grid_of(n)
    cell = torch.arange(n)
    fixed = {
        "xy": torch.stack([cell % columns, cell // columns], 1),
        "grid": torch.tensor([columns, rows]).expand(n, 2),
        "group": torch.zeros(n, dtype=torch.int64),
        "time": torch.zeros(n, dtype=torch.int64),
        "tile": torch.zeros(n, 2, dtype=torch.int64),
        "size": torch.randint(1, 4, (n,), generator=g).float(),
        "visual_index": cell + PREFIX,
        "text_index": torch.arange(text) + PREFIX + n,
        "text_mask": torch.arange(text) < (text - (seed // 1000) % 2 if text > 1 else 1),
        "start_mask": torch.ones(16, dtype=torch.bool),
    }
    out = {}
    for name in names:
        base = name.split("@", 1)[0]
        if base in fixed:
            out[name] = fixed[base]
            continue
        axes = [a.strip() for a in signal_info(name).shape.strip("[]").split(",")][1:]
        shape = [sizes[a] for a in axes]
        draw = torch.randn(shape, generator=g)
        if is_attention(base):
            out[name] = 0.8 * draw.softmax(-1)
            continue
        if base in ("transition", "transition_abs", "importance"):
            out[name] = draw.abs()
            continue
        out[name] = _styled(draw, style, signal_info(name).token_dims)
    return out


def _styled(draw: Tensor, style: str, token_dims: tuple[int, ...]) -> Tensor:
    if style == "zeros":
        return torch.zeros_like(draw)
    if style == "large":
        return draw.clamp(-4, 4) * 1e4
    for axis in token_dims:
        index = torch.arange(draw.shape[axis - 1])
        if style == "constant":
            draw = draw.index_select(axis - 1, torch.zeros_like(index))
        elif style == "duplicates":
            draw = draw.index_select(axis - 1, index % ((len(index) + 1) // 2))
    return draw


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
        if signal_info(name).shape == "[B,H,L,L]":
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
    return Signals(tensors, signals.mask if signals.ragged else None, signals.sample)


def garbage_in_padding(signals: Signals, seed: int = 5) -> Signals:
    """The same signals with other finite values at padded tokens."""
    g = torch.Generator().manual_seed(seed)
    changed = {}
    for name in signals:
        tensor, out = signals[name], signals[name].clone()
        noise = (7 * torch.randn(tensor.shape, generator=g)).abs()
        noise = noise.to(tensor.dtype) if tensor.is_floating_point() else torch.zeros_like(tensor)
        for axis in signal_info(name).token_dims:
            shape = [1] * tensor.dim()
            shape[0], shape[axis] = signals.batch, signals.tokens
            out = torch.where(signals.mask.view(shape), out, noise)
        changed[name] = out
    return with_tensors(signals, changed)


def spread(signals: Signals, fill: str, seed: int = 3) -> tuple[Signals, Tensor]:
    """Ragged samples with padding between their tokens instead of after them.

    Floating-point signals hold at padding numbers below, between or above all real ones (`fill`).  Returns
    the new signals and `[B,N]` int64, the old place of every token, -1 at padding; tokens keep their order.
    """
    g = torch.Generator().manual_seed(seed)
    old = torch.full(signals.mask.shape, -1)
    for row, real in zip(old, signals.mask, strict=True):
        tokens = real.nonzero().squeeze(1)
        row[torch.randperm(len(row), generator=g)[: len(tokens)].sort().values] = tokens
    moved = gather_tokens(signals, old, torch.arange(signals.batch))
    return with_tensors(moved, {name: filled(name, moved, fill) for name in floating(moved)}), old


def filled(name: str, signals: Signals, fill: str) -> Tensor:
    """A floating-point signal with its padding below, between or above its real entries."""
    tensor = signals[name]
    real = torch.ones(tensor.shape, dtype=torch.bool)
    for axis in signal_info(name).token_dims:
        shape = [1] * tensor.dim()
        shape[0], shape[axis] = signals.batch, signals.tokens
        real = real & signals.mask.view(shape)
    return fill_out(tensor, real, fill)


def fill_out(values: Tensor, real: Tensor, fill: str) -> Tensor:
    """`values` with entries that are not `real` below, between or above those that are."""
    low, high = values[real].min(), values[real].max()
    width = high - low + 1
    return values.where(
        real, {"below": low - width, "between": (low + high) / 2, "above": high + width}[fill]
    )


def floating(signals: Signals) -> list[str]:
    """Names of the signals that carry features, attention or scores."""
    bases = {name: name.split("@", 1)[0] for name in signals}
    return [n for n in signals if bases[n] not in GEOMETRY | MASKS and signals[n].is_floating_point()]


# -- transport ------------------------------------------------------------------------------------------


def _masses(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    mass = torch.rand(shape, generator=g, dtype=torch.float64) + 0.3
    return mass / mass.sum(1, keepdim=True)


def transport(
    family: str = "random",
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
    return TransportProblem.build(cost.to(dtype), a.to(dtype), b.to(dtype))


def transport_optimum(problem: TransportProblem) -> Tensor:
    """`[B]` float64 optimum by a linear program (HiGHS through SciPy): the witness."""
    return torch.tensor(
        [
            _witness(tuple(c.shape), *(tuple(t.double().flatten().tolist()) for t in (c, a, b)))
            for c, a, b in zip(problem.cost, problem.a, problem.b, strict=True)
        ],
        dtype=torch.float64,
    )


@cache
def _witness(
    shape: tuple[int, int], cost: tuple[float, ...], a: tuple[float, ...], b: tuple[float, ...]
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


def subset(
    kind: str,
    batch: int = 2,
    tokens: int = 12,
    k: int = 5,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
    protect: bool = False,
    duplicates: bool = False,
    metric: bool = False,
    dtype: torch.dtype = torch.float64,
) -> SubsetProblem:
    """A subset problem over random unit vectors, with scores in [0.1, 1.1] whatever the kind.

    `protect` protects token 2; `duplicates`: the second half of the tokens repeats the first; `metric`:
    Euclidean distances of points in the plane.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, 16, generator=g, dtype=torch.float64)
    unary = torch.rand(batch, tokens, generator=g, dtype=torch.float64) + 0.1
    if duplicates:
        twice = torch.arange(tokens) % ((tokens + 1) // 2)
        x, unary = x[:, twice], unary[:, twice]
    x = x / x.norm(dim=2, keepdim=True)
    terms = find_kind(kind).draw(x, unary, k)
    terms["unary"] = unary.to(dtype)
    if metric:
        terms["pairwise"] = torch.cdist(x[:, :, :2], x[:, :, :2])
    if (pairwise := terms.get("pairwise")) is not None:
        terms["pairwise"] = pairwise.to(dtype)
    if lengths is not None:
        terms["mask"] = torch.arange(tokens) < torch.tensor(list(lengths))[:, None]
    if protect:
        terms["protected"] = (torch.arange(tokens) == 2).expand(batch, -1)
    return SubsetProblem.build(kind, k, **terms)
