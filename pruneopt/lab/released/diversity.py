"""Released rules that compare tokens with each other; `attention` says what a rule is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruneopt.lab.released.attention import Chosen, each


def divprune_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Farthest-point insertion; every round looks at the rows of all chosen tokens anew; batch one."""
    rows = signals["features"]
    rows = rows / rows.norm(dim=1, keepdim=True)
    distance = 1 - rows @ rows.T
    chosen = torch.zeros(keep, dtype=torch.int64)
    for t in range(keep):
        if t == 0:
            score = distance.topk(2, dim=0, largest=False).values[1]
        else:
            score = distance.index_select(0, chosen[:t]).min(0).values
        chosen[t] = score.argmax()
    return chosen.sort().values, None


def cdpruner_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Greedy determinantal choice over relevance times cosine; its batch are the crops of one sample."""
    rows = signals["features"][None]
    rows = (rows / rows.norm(dim=2, keepdim=True)).float()
    likeness = torch.bmm(rows, rows.transpose(1, 2))
    patches, text = signals["clip_features"], signals["clip_text"]
    patches = patches / patches.norm(dim=1, keepdim=True)
    text = text / text.norm(dim=1, keepdim=True)
    relevance = -(patches @ text.T).mean(1)[None]
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, :, None] * likeness * relevance[:, None, :]
    crops, tokens = relevance.shape
    number = torch.arange(crops)
    factor = torch.zeros(keep, crops, tokens)
    variance = kernel.diagonal(dim1=1, dim2=2).clone()
    chosen = torch.zeros(keep, crops, dtype=torch.int64)
    for t in range(keep):
        pick = variance.argmax(1)
        chosen[t] = pick
        row = kernel[number, pick] - torch.einsum("tb,tbn->bn", factor[:t, number, pick], factor[:t])
        row = row / variance[number, pick].sqrt()[:, None]
        factor[t] = row
        variance -= row.square()
        variance[number, pick] = -torch.inf
    return chosen[:, 0].sort().values, None


def dart_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Every pivot takes the tokens least like it, visited as a CPython set lies; batch one.

    Keeps 4 tokens and 8 for every whole 8 that were asked for.
    """
    prefix, real = 35, signals["text_mask"]
    hidden = torch.cat([signals["hidden_normed"], signals["text_hidden_normed"][real]])
    keys = torch.cat([signals["keys"], signals["text_keys"][:, real]], 1).transpose(0, 1).flatten(1)
    tokens = signals["hidden_normed"].shape[0]
    norm = keys.norm(p=1, dim=1)
    visual = (norm[:tokens].topk(4).indices + prefix).tolist()
    text = (norm[tokens:].topk(4).indices + tokens + prefix).tolist()
    left = set(range(prefix, prefix + tokens)) - set(visual)
    kept = set(visual)
    for pivot in set(visual + text):
        places = list(left)
        rows = hidden[torch.tensor(places) - prefix]
        likeness = torch.nn.functional.cosine_similarity(hidden[pivot - prefix][None], rows, dim=1)
        picked = [places[i] for i in (-likeness).topk(keep // 8).indices.tolist()]
        kept.update(picked)
        left.difference_update(picked)
    return torch.tensor(sorted(kept)) - prefix, None


def vispruner(signals: Mapping[str, Tensor], keep: int) -> Chosen:
    """Half by CLS attention; the rest survives rounds that drop 8 even tokens; the whole batch at once."""
    order = signals["cls_attention"].mean(1).argsort(dim=1, descending=True)
    core = keep // 2
    left, want = order[:, core:], keep - core
    rows = signals["encoder_features"]
    rows = rows / rows.norm(dim=2, keepdim=True)
    while left.shape[1] > want:
        drop = min(8, left.shape[1] - want)
        now = rows.gather(1, left[:, :, None].expand(-1, -1, rows.shape[2]))
        likeness = (now[:, 0::2] @ now[:, 1::2].transpose(1, 2)).max(2).values
        rank = likeness.argsort(dim=1, descending=True)[:, drop:]
        left = torch.cat([left[:, 0::2].gather(1, rank), left[:, 1::2]], 1)
    mask = torch.zeros_like(order, dtype=torch.bool)
    mask.scatter_(1, torch.cat([order[:, :core], left], 1), True)
    return [row.nonzero().squeeze(1) for row in mask], []


def saint_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Even tokens with many twins among the odd ones go, as many as have five or more.

    Its code averages that number over the batch, so that results hang on batch mates: one sample at a time.
    """
    threshold, rows = 0.83, signals["keys"].mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    likeness = rows[0::2] @ rows[1::2].T
    twins = likeness >= threshold
    degree = twins.sum(1)
    drop = int((degree >= 5).sum().float())
    mean = torch.where(twins, likeness, torch.zeros(())).sum(1) / degree.clamp(min=1)
    score = torch.where(degree > 0, degree * (10 * (mean - threshold)).exp(), likeness.mean(1))
    gone = score.argsort(descending=True)[:drop] * 2
    mask = torch.ones(len(rows), dtype=torch.bool)
    mask[gone] = False
    return mask.nonzero().squeeze(1), None


def saint_encoder_one(signals: dict[str, Tensor], keep: int) -> tuple[Tensor, None]:
    """Drops the tokens most like all that are left; the number just dropped divides next; batch one."""
    rows = signals["encoder_keys@19"].mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    likeness = rows @ rows.T
    left, divisor = torch.arange(len(rows)), 16
    while len(left) > keep:
        divisor = max(1, min(len(left) - keep, len(left) // divisor))
        total = likeness[left][:, left].sum(1)
        mask = torch.ones(len(left), dtype=torch.bool)
        mask[total.topk(divisor).indices] = False
        left = left[mask]
    return left, None


divprune, cdpruner, dart = each(divprune_one), each(cdpruner_one), each(dart_one)
saint, saint_encoder = each(saint_one), each(saint_encoder_one)
