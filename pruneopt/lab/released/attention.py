"""Released rules that read attention, each from the description of its code, in its loops.

A rule gets the signals that the spec of the method reads and how many tokens to keep.  It gives the places
that stay, rising, one row a sample; where the release builds new tokens, those too (in its own order).  Rules
whose code takes one sample at a time are mapped over the batch by `each`.  Where a description does not say
how a step is coded, the rule takes the fast way.  All is float32, which a CPU is
fastest at; releases run in the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Chosen = tuple[list[Tensor], list[Tensor]]  # places and new tokens a sample, or no tokens at all
Rule = Callable[[Mapping[str, Tensor], int], Chosen]
DOMINANT = 0.84375  # 54 of 64 tokens are kept for their score, 10 take up others


def each(one: Callable[[dict[str, Tensor], int], tuple[Tensor, Tensor | None]]) -> Rule:
    """A rule for a batch from the rule for one sample, whose tensors come without the batch."""

    def rule(signals: Mapping[str, Tensor], keep: int) -> Chosen:
        batch = len(next(iter(signals.values())))
        found = [one({name: signals[name][b] for name in signals}, keep) for b in range(batch)]
        return [kept for kept, _ in found], [tokens for _, tokens in found if tokens is not None]

    return rule


def last_row(name: str) -> Rule:
    """FastV and PyramidDrop: mean over heads of the last prompt token's row, `topk`, sorted; batch one."""

    def one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
        return signals[name].mean(0).topk(keep).indices.sort().values, None

    return each(one)


def fastervlm(signals: Mapping[str, Tensor], keep: int) -> Chosen:
    """Mean over heads of the CLS row, `topk`, a mask by scatter; the whole batch at once."""
    score = signals["cls_attention"].mean(1)
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask.scatter_(1, score.topk(keep, dim=1).indices, True)
    return [row.nonzero().squeeze(1) for row in mask], []


def transprune_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Transitions of all stored layers and attention of the instruction, each to a sum of one; batch one."""
    turned = torch.stack([signals[name] for name in sorted(signals) if name.startswith("transition")]).sum(0)
    asked = signals["lookahead_text"][:, signals["text_mask"]].mean(0).mean(0)
    score = turned / (turned.sum() + 1e-8) + asked / (asked.sum() + 1e-8)
    return score.topk(keep).indices.sort().values, None


def sparsevlm_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Attention of the raters among the text; the better dropped tokens become cluster means; batch one."""
    real = signals["text_mask"]
    visual, text = signals["start_embeddings"][signals["start_mask"]], signals["text_embeddings"][real]
    weight = (visual @ text.T).softmax(1).mean(0)
    raters = (weight > weight.mean()).nonzero().squeeze(1)
    score = signals["attention_text"][:, real][:, raters].mean(0).mean(0)
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[score.topk(keep).indices] = True
    kept, dropped = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    pool = dropped[score[dropped].topk(int(0.3 * len(dropped)) + 1).indices]
    rows, clusters = signals["features"][pool], int(len(pool) / 10) + 1
    centres, home = density_peaks(rows, clusters)
    total = torch.zeros(clusters, rows.shape[1]).index_add_(0, home, rows)
    count = torch.zeros(clusters).index_add_(0, home, torch.ones(len(pool)))
    merged = total / (count[:, None] + 1e-6)
    return torch.cat([kept, pool[centres]]).sort().values, torch.cat([signals["features"][kept], merged])


def density_peaks(rows: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres, and the centre of every row, by density peaks; the noise of the release, seeded."""
    distance = torch.cdist(rows[None], rows[None])[0] / rows.shape[1] ** 0.5
    near = distance.topk(clusters, dim=1, largest=False).values
    density = (-near.square().mean(1)).exp()
    density = density + torch.rand(len(rows), generator=torch.Generator().manual_seed(0)) * 1e-6
    denser = density[None, :] > density[:, None]
    gap = torch.where(denser, distance, distance.max()).min(1).values
    centres = (gap * density).topk(clusters).indices
    home = distance[:, centres].argmin(1)
    home[centres] = torch.arange(clusters)
    return centres, home


def visiondrop_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Attention among visual tokens; the rest is added to evenly strided tokens; one sample at a time."""
    score = signals["lookahead_visual"].mean(0).mean(0)
    best = score.topk(round(DOMINANT * keep)).indices.sort().values
    values, keys = signals["features"], signals["lookahead_keys"].mean(0)
    mask = torch.ones(len(score), dtype=torch.bool)
    mask[best] = False
    left = mask.nonzero().squeeze(1)
    targets, added = strided_merge(values[None, left], keys[None, left], count=keep - len(best))
    return torch.cat([best, left[targets]]).sort().values, torch.cat([values[best], added[0]])


def strided_merge(values: Tensor, metric: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """VisionZip's contextual tokens: places of the targets `[C]`, and `[B,C,D]` target plus mean of its own.

    Others go to the target with the largest cosine, by a product with their one-hot assignment.
    """
    metric = metric / metric.norm(dim=-1, keepdim=True)
    left = values.shape[1]
    step = max(1, left // count)
    targets = torch.arange(0, left, step)[:count]
    others = torch.ones(left, dtype=torch.bool)
    others[targets] = False
    cosine = torch.bmm(metric[:, others], metric[:, targets].transpose(1, 2))
    assign = torch.zeros_like(cosine).scatter_(2, cosine.argmax(2)[:, :, None], 1.0)
    counts = assign.sum(1).clamp(min=1)[:, :, None]
    mean = torch.bmm(assign.transpose(1, 2), values[:, others]) / counts
    return targets, values[:, targets] + mean


def pagerank(signals: Mapping[str, Tensor], keep: int) -> Chosen:
    """AIM's walk over the whole map, every head; text counts as 1, and the sorted first tokens stay."""
    step = torch.softmax(signals["attention_logits"] / 0.1, dim=-1, dtype=torch.float32)
    batch, heads, length, _ = step.shape
    mass = torch.full((batch, heads, 1, length), 1 / length)
    for _ in range(5):
        mass = mass @ step
    score = mass.squeeze(2).square().mean(1).sqrt()
    place = signals["visual_index"]
    text = torch.ones_like(score, dtype=torch.bool).scatter_(1, place, False)
    order = score.masked_fill(text, 1.0).argsort(dim=1, descending=True)
    mask = torch.zeros_like(text).scatter_(1, order[:, : length - place.shape[1] + keep], True)
    return [row.nonzero().squeeze(1) for row in mask.gather(1, place)], []


transprune, sparsevlm, visiondrop = each(transprune_one), each(sparsevlm_one), each(visiondrop_one)
