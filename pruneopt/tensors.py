"""Small tensor helpers that several parts share."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of `[...,D]` at unit length, float32; a zero row stays zero."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def flat_heads(heads: Tensor) -> Tensor:
    """`[B,H,N,d]` to `[B,N,H*d]`: the heads of a token side by side."""
    return heads.transpose(1, 2).flatten(2)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`[B,K,D]` rows of `[B,N,D]` at `index` `[B,K]`."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def first_true(flags: Tensor) -> int:
    """Index of the first True of `[B]`, which a refusal names; waits for the device."""
    return int(flags.nonzero()[0, 0])


def not_finite(values: Tensor, real: Tensor | None = None) -> Tensor:
    """`[B]` bool: NaN or infinity among the entries of `[B,...]`, or among the `real` ones of them.

    The largest and the least entry say so: two reductions, and no temporary of the size of the tensor.
    """
    if not values.is_floating_point() or not values.numel():
        return torch.zeros(values.shape[0], dtype=torch.bool, device=values.device)
    rows = (values if real is None else values.masked_fill(~real, 0)).flatten(1)
    return rows.amax(1) * 0 != rows.amin(1) * 0  # a number that is not finite times 0 is NaN, unlike itself


def places(mask: Tensor) -> Tensor:
    """`[B,N]` int64: how many real tokens stand before each token of its sample."""
    return mask.long().cumsum(1) - 1


def across(mask: Tensor, dims: tuple[int, ...], *, rank: int) -> Tensor:
    """`mask` `[B,N]` for a tensor of `rank` axes: True where it is True along all axes `dims`."""
    found = None
    for dim in dims:
        shape = [1] * rank
        shape[0], shape[dim] = mask.shape
        along = mask.view(shape)
        found = along if found is None else found & along
    return mask.new_ones([1] * rank) if found is None else found


def gram(rows: Tensor, blocks: int = 4) -> Tensor:
    """`X X^T` `[B,N,N]` of `[B,N,D]`, exactly symmetric; only one triangle of blocks is multiplied."""
    tokens = rows.shape[1]
    if tokens < 256 or rows.device.type != "cpu":
        product = torch.bmm(rows, rows.transpose(1, 2))
        return (product + product.transpose(1, 2)) / 2
    out = rows.new_empty(rows.shape[0], tokens, tokens)
    edges = [round(i * tokens / blocks) for i in range(blocks + 1)]
    for i in range(blocks):
        high = slice(edges[i], edges[i + 1])
        for j in range(i, blocks):
            low = slice(edges[j], edges[j + 1])
            product = torch.bmm(rows[:, high], rows[:, low].transpose(1, 2))
            if i == j:
                product = (product + product.transpose(1, 2)) / 2
            out[:, high, low] = product
            if i != j:
                out[:, low, high] = product.transpose(1, 2)
    return out


def range_per_sample(values: Tensor, mask: Tensor, *, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest real value over all problems of the same sample: `[B]`, `[B]`."""
    low = values.masked_fill(~mask, torch.inf).amin(1)
    high = values.masked_fill(~mask, -torch.inf).amax(1)
    size = int(sample.max()) + 1
    least = torch.full((size,), torch.inf, dtype=values.dtype, device=values.device)
    most = torch.full((size,), -torch.inf, dtype=values.dtype, device=values.device)
    least.scatter_reduce_(0, sample, low, "amin")
    most.scatter_reduce_(0, sample, high, "amax")
    return least[sample], most[sample]


def cosine_rows(rows: Tensor, mask: Tensor | None, *, heads: str) -> Tensor:
    """`[B,N,D]` unit vectors of `[B,N,D]` or `[B,H,N,d]` rows; heads are `joined` or averaged (`mean`).

    Zero where `mask` is False; None where all tokens are real.
    """
    if rows.dim() == 4:
        rows = flat_heads(rows) if heads == "joined" else rows.float().mean(1)
    rows = unit_rows(rows)
    return rows if mask is None else rows.masked_fill(~mask[:, :, None], 0)


def cosine_gram(rows: Tensor, mask: Tensor | None, *, heads: str) -> Tensor:
    """Cosines `[B,N,N]` of such rows; that of a token with itself is 1 whatever rounding gives."""
    cosines = gram(cosine_rows(rows, mask, heads=heads))
    cosines.diagonal(dim1=1, dim2=2).round_()
    return cosines


def keep_top(importance: Tensor, k: Tensor, *, mask: Tensor) -> Tensor:
    """`[B,N]` bool: the `k[b]` largest real entries of each row, ties to the lower index."""
    ranked = importance.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(ranked)
    place.scatter_(1, ranked, torch.arange(ranked.shape[1], device=k.device).expand_as(ranked))
    return (place < k[:, None]) & mask


def normalize(values: Tensor, how: str, *, mask: Tensor) -> Tensor:
    """Scale `[B,N]` or `[B,N,M]` per problem over its real entries; constant input becomes zeros.

    `minmax` to [0,1]; `sum` to a sum of one; `max` to a largest magnitude of one; `zscore` to mean 0 and
    deviation 1; `l2` to unit Euclidean length; `softmax` to a softmax over the real entries.
    """
    if how == "none":
        return values
    dims = tuple(range(1, values.dim()))
    if values.dim() == 3:
        mask = mask[:, :, None] & mask[:, None, :] if values.shape[1] == values.shape[2] else mask[:, :, None]
        mask = mask.expand(values.shape)
    if how == "softmax":
        flat = values.masked_fill(~mask, -torch.inf).flatten(1).softmax(1)
        return flat.view_as(values).nan_to_num()  # a sample without real entries: 0
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    clean = values.masked_fill(~mask, 0)
    shift: Tensor | float = 0.0
    if how == "sum":
        scale = clean.sum(dims, keepdim=True)
    elif how == "max":
        scale = clean.abs().amax(dims, keepdim=True)
    elif how == "l2":
        scale = clean.pow(2).sum(dims, keepdim=True).sqrt()
    elif how == "zscore":
        shift = clean.sum(dims, keepdim=True) / count
        scale = ((clean - shift).masked_fill(~mask, 0).pow(2).sum(dims, keepdim=True) / count).sqrt()
    else:
        shift = values.masked_fill(~mask, torch.inf).amin(dims, keepdim=True)
        scale = values.masked_fill(~mask, -torch.inf).amax(dims, keepdim=True) - shift
    return torch.where(scale != 0, (values - shift) / torch.where(scale != 0, scale, 1), 0.0)
