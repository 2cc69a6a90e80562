"""Released rules that build new tokens; `attention` says what a rule is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pruneopt.lab.released.attention import DOMINANT, Chosen, Rule, each, strided_merge

Metric = Callable[[Mapping[str, Tensor]], Tensor]
Merge = Callable[..., Tensor]


def bipartite(metric: Metric, merge: Merge) -> Rule:
    """ToMe and AIM: the even tokens most like an odd one are averaged into it; the whole batch at once."""

    def rule(signals: Mapping[str, Tensor], keep: int) -> Chosen:
        rows, values = metric(signals), signals["features"]
        rows = rows / rows.norm(dim=-1, keepdim=True)
        likeness = rows[:, 0::2] @ rows[:, 1::2].transpose(1, 2)
        best, home = likeness.max(2)
        order = best.argsort(dim=1, descending=True)
        gone = values.shape[1] - keep
        source, left = order[:, :gone], order[:, gone:]
        wide = lambda index: index[:, :, None].expand(-1, -1, values.shape[2])  # noqa: E731
        even, odd = values[:, 0::2], values[:, 1::2]
        taken = merge(odd, wide(home.gather(1, source)), what=even.gather(1, wide(source)))
        odds = torch.arange(1, values.shape[1], 2).expand(len(values), -1)
        kept = torch.cat([2 * left, odds], 1).sort(1).values
        return list(kept), list(torch.cat([even.gather(1, wide(left)), taken], 1))

    return rule


def _weighted(into: Tensor, where: Tensor, *, what: Tensor) -> Tensor:
    """The mean weighted by sizes, all one here, as ToMe's code takes it: two sums and a quotient."""
    size = torch.ones_like(into[:, :, :1]).scatter_add(1, where[:, :, :1], torch.ones_like(what[:, :, :1]))
    return into.scatter_add(1, where, what) / size


def _mean(into: Tensor, where: Tensor, *, what: Tensor) -> Tensor:
    return into.scatter_reduce(1, where, what, "mean", include_self=True)


tome = bipartite(lambda signals: signals["encoder_keys"].mean(1), _weighted)
aim = bipartite(lambda signals: signals["features"], _mean)


def visionzip(signals: Mapping[str, Tensor], keep: int) -> Chosen:
    """Tokens of most CLS attention, and evenly strided ones that take up the rest; whole batch at once."""
    score = signals["cls_attention"].sum(1)
    values, keys = signals["features"], signals["encoder_keys"].mean(1)
    count = round(DOMINANT * keep)
    mask = torch.ones_like(score, dtype=torch.bool).scatter_(1, score.topk(count, dim=1).indices, False)
    batch, _, width = values.shape
    best = values[~mask].view(batch, count, width)
    left = values[mask].view(batch, -1, width)
    metric = keys[mask].view(batch, left.shape[1], -1)
    targets, added = strided_merge(left, metric, count=keep - count)
    kept = mask.clone().logical_not()
    place = mask.nonzero()[:, 1].view(batch, -1)[:, targets]
    kept.scatter_(1, place, True)
    return [row.nonzero().squeeze(1) for row in kept], list(torch.cat([best, added], 1))


def prumerge_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Outliers of the CLS row, each plus its 32 nearest others, and one token of all the rest.

    Its code takes the quartiles over the whole batch, so that results hang on batch mates: one at a time.
    """
    keys = signals["encoder_keys@-1"].transpose(0, 1).flatten(1)
    query, own = signals["cls_query@-1"].flatten(), signals["cls_key@-1"].flatten()
    row = torch.cat([own[None], keys]) @ query * query.shape[0] ** -0.5
    score, values = row.softmax(0)[1:], signals["features"]
    low, high = (torch.quantile(score, q) for q in (0.25, 0.75))
    count = int((score > high + 1.5 * (high - low)).sum())
    best = score.topk(count).indices
    rows = keys / keys.norm(dim=1, keepdim=True)
    tokens = torch.empty(count + 1, values.shape[1])
    for i, token in enumerate(best.tolist()):
        likeness = rows @ rows[token]
        likeness[token] = -2
        near = likeness.topk(32).indices
        tokens[i] = values[token] + (score[near, None] * values[near]).sum(0)
    mask = torch.ones(len(score), dtype=torch.bool)
    mask[best] = False
    tokens[count] = (score[mask, None] * values[mask]).sum(0)
    carrier = score.masked_fill(~mask, -1).argmax()[None]  # the release appends a token instead
    return torch.cat([best, carrier]).sort().values, tokens


def vflowopt_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Attention of the patches all look at; what is dropped becomes one token a cell; batch one."""
    side, attention = 11.757, signals["encoder_attention"].mean(0)
    received = attention.mean(0)
    score = attention[received > 28.683 * received.mean()].mean(0)
    if score.isnan().any():  # no patch is above the threshold, and the release has no answer
        score = received
    values, xy = signals["features"].clone(), signals["xy"]
    low = score.topk(len(score) - keep + int(len(score) / side**2), largest=False).indices.tolist()
    cells: dict[tuple[int, int], list[int]] = {}
    for token in low:
        column, row = xy[token].tolist()
        cells.setdefault((math.floor(row / side), math.floor(column / side)), []).append(token)
    mask = torch.ones(len(score), dtype=torch.bool)
    mask[low] = False
    for members in cells.values():
        weight = score[members] / score[members].sum()
        carrier = members[int(score[members].argmax())]
        values[carrier] = (weight[:, None] * signals["features"][members]).sum(0)
        mask[carrier] = True
    return mask.nonzero().squeeze(1), values[mask]


def globalcom2_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Crops get what the thumbnail says they are worth, and keep by both views; one picture at a time."""
    crops = int(signals["group"].max())
    keys = signals["encoder_keys@-1"].unflatten(1, (crops + 1, -1)).transpose(0, 1)
    query = signals["cls_query@-1"]
    score = torch.einsum("hd,ghnd->ghn", query, keys).mean(1) * query.shape[1] ** -0.5
    tokens = score.shape[1]
    ratio = keep / tokens
    thumbnail, side = score[0], math.isqrt(tokens)
    columns, rows = (int(size) + 1 for size in signals["tile"].amax(0))
    image, cell = thumbnail.view(side, side), (side // rows, side // columns)
    sums = []
    for row in range(rows):
        for column in range(columns):
            down = slice(row * cell[0], side if row == rows - 1 else (row + 1) * cell[0])
            across = slice(column * cell[1], side if column == columns - 1 else (column + 1) * cell[1])
            sums.append(image[down, across].sum())
    worth = torch.stack(sums) / 10.0
    share = (worth - worth.max()).exp()
    share = share / (share.sum() + 1e-8)
    part = (ratio * (1 + share - share.mean())).clamp(max=1.0)
    wide = interpolate(image[None, None], size=(rows * side, columns * side), mode="bilinear")[0, 0]
    kept = [thumbnail.topk(int(tokens * ratio)).indices]
    for crop in range(crops):
        row, column = divmod(crop, columns)
        seen = wide[row * side : (row + 1) * side, column * side : (column + 1) * side].flatten()
        own = score[crop + 1]
        total = own / own.norm() + seen / seen.norm()
        kept.append(total.topk(int(tokens * float(part[crop]))).indices + (crop + 1) * tokens)
    return torch.cat(kept).sort().values, None


def vitcop_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Density-peak clusters keep their share of small keys, one token stands for their rest; batch one."""
    rows = signals["encoder_keys"].transpose(0, 1).flatten(1)
    label = vicinity(rows, signals["xy"] / signals["grid"])
    norm, values = signals["keys"].mean(0).norm(dim=1), signals["features"]
    clusters = [(label == number).nonzero().squeeze(1) for number in label.unique().tolist()]
    clusters.sort(key=lambda members: float(norm[members].sum()))
    kept: list[Tensor] = []
    if len(clusters) > keep:
        groups = [*clusters[: keep - 1], torch.cat(clusters[keep - 1 :])]
    else:
        groups = []
        for members, quota in zip(clusters, quotas([len(c) for c in clusters], keep), strict=True):
            order = members[norm[members].argsort()]
            kept.append(order[:quota])
            groups.append(order[quota:])
    carriers, tokens = [], []
    for group in groups:
        group = group.sort().values
        carriers.append(group[len(group) // 2])
        tokens.append(values[carriers[-1]] + values[group].mean(0))
    alone = torch.cat([*kept, torch.empty(0, dtype=torch.int64)])
    places = torch.cat([alone, torch.stack(carriers)])
    order = places.argsort()
    return places[order], torch.cat([values[alone], torch.stack(tokens)])[order]


def vicinity(rows: Tensor, place: Tensor) -> Tensor:
    """Cluster of every row, -1 where no chain of links comes to a centre."""
    distance = torch.cdist(rows, rows).fill_diagonal_(0)
    density = (-(distance / 8.0).square()).exp().sum(1)
    apart = torch.cdist(place, place)
    linked = (density[None] >= density[:, None]) & (apart <= 0.6)
    linked.fill_diagonal_(False)
    delta, parent = distance.masked_fill(~linked, torch.inf).min(1)
    centres = (density * delta).topk(max(1, int(0.18 * len(rows)))).indices
    label = torch.full((len(rows),), -1)
    label[centres] = torch.arange(len(centres))
    while True:
        new = torch.where((label < 0) & (delta < torch.inf), label[parent], label)
        if torch.equal(new, label):
            return label
        label = new


def quotas(sizes: list[int], keep: int) -> list[int]:
    """Tokens that clusters keep beside the merged one, from the lightest to the heaviest."""
    spare, left = sum(sizes) - len(sizes), keep - len(sizes)
    quota = [min(round((size - 1) / spare * left), size - 1) for size in sizes]
    short = sum(quota) < left
    for i in range(len(sizes)) if short else reversed(range(len(sizes))):
        if sum(quota) == left:
            break
        if (quota[i] < sizes[i] - 1) if short else quota[i]:
            quota[i] += 1 if short else -1
    return quota


prumerge, vflowopt = each(prumerge_one), each(vflowopt_one)
globalcom2, vitcop = each(globalcom2_one), each(vitcop_one)
