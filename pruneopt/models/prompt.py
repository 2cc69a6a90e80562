"""The prompt of one prefill: which columns are visual, free to go, text, or padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pruneopt.errors import InputError, ModelError
from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.signals import signal_info

_GEOMETRY = ("xy", "grid", "tile", "time")


@dataclass
class Prompt:
    """Geometry of one batch.  `B'` counts the rows that hold visual tokens (`rows`), `N` their most.

    Parameters
    ----------
    batch, columns: shape of the padded input.  lengths: real tokens per row.  leading: padding columns
    before the first real one.  inner: other padding columns.  started: free visual tokens per row of `rows`.
    real `[B,L]`: no padding, by the attention mask alone: a visual token that it hides is padding like any.
    free `[B,L]`: visual and prunable.  The last real column of a row is not, whatever it holds: the logits of
    the row are read there.
    place `[B',N]`: columns of the free tokens, -1 at padding.  text `[B',T]`: columns of the text after the
    first visual token, -1 at padding.  last `[B']`: column of the last real token.
    source `[B',N]`: index of the token among all packed encoder tokens (images first, then videos).
    geometry: `xy`, `grid`, `tile` `[B',N,2]`, `group`, `time` `[B',N]`.  groups: most groups in one row.
    """

    batch: int
    columns: int
    lengths: list[int]
    leading: list[int]
    inner: list[int]
    rows: list[int]
    started: list[int]
    real: Tensor
    free: Tensor
    place: Tensor
    text: Tensor
    last: Tensor
    source: Tensor
    geometry: dict[str, Tensor]
    groups: int


def read_prompt(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Prompt:
    """Read the batch once, on the host, before any layer runs.

    Raises InputError for a batch without visual tokens, ModelError when placeholders and pictures disagree.
    """
    stream = adapter.stream(inputs)
    device = stream.device
    kinds = stream.cpu()
    mask = inputs.get("attention_mask")
    if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
        raise ModelError(
            "the attention mask must be the 2-D padding mask while pruning; custom 4-D masks do not say "
            "which columns are padding"
        )
    real = torch.ones_like(kinds, dtype=torch.bool) if mask is None else mask.cpu().bool()
    if real.shape != kinds.shape:
        raise ModelError(
            f"the prompt has {kinds.shape[1]} tokens but its attention mask {real.shape[1]}: a prompt that "
            "is fed in chunks cannot be pruned; pass prefill_chunk_size=None"
        )
    if not (kinds > 0).any():
        raise InputError(
            "the prompt has no image: no image or video placeholder was found in input_ids; add a "
            "picture, or leave the pruning context for text-only prompts"
        )
    if not has_pixels(inputs):
        raise InputError(
            "the prompt has image placeholders but no pixels: pass pixel_values, or let generate encode "
            "them, so that the layout of the pictures is known"
        )
    images, videos = adapter.pictures(inputs)
    times = _repeats(kinds, sum(map(len, images)) + sum(map(len, videos)))
    owner = _assign(kinds[::times], images, videos=videos).repeat_interleave(times, dim=0)
    last = [int(row.nonzero().max()) if row.any() else 0 for row in real]
    may_go = real.clone()
    may_go[range(len(real)), last] = False
    free, group, crop_count = _free(may_go, owner, pictures=images + videos)
    rows = [b for b in range(len(kinds)) if free[b].any()]
    if not rows:
        raise InputError(
            "no visual token in the prompt can be pruned: the pictures gave only separators, padding, or the "
            "last token of the prompt, which always stays"
        )
    flat = _concatenate(images + videos)
    places = [free[b].nonzero().squeeze(1) for b in rows]
    source = [owner[b][place] for b, place in zip(rows, places, strict=True)]
    text = []
    for b in rows:
        visual = (real[b] & (kinds[b] > 0)).nonzero().squeeze(1)
        after = torch.arange(kinds.shape[1]) > visual[0]
        text.append((real[b] & (kinds[b] == 0) & after).nonzero().squeeze(1))
    geometry = {name: _pad([flat[name][s] for s in source]).to(device) for name in _GEOMETRY}
    geometry["group"] = _pad([group[b][p] for b, p in zip(rows, places, strict=True)]).to(device)
    lengths = real.sum(1).tolist()
    leading = [int(row.nonzero().min()) if row.any() else kinds.shape[1] for row in real]
    inner = [kinds.shape[1] - n - lead for n, lead in zip(lengths, leading, strict=True)]
    return Prompt(
        kinds.shape[0],
        kinds.shape[1],
        lengths,
        leading,
        inner,
        rows,
        [len(place) for place in places],
        real.to(device),
        free.to(device),
        _pad(places, -1).to(device),
        _pad(text, -1).to(device),
        torch.tensor([last[b] for b in rows], device=device),
        _pad(source).to(device),
        geometry,
        max(crop_count[b] for b in rows),
    )


def has_pixels(inputs: Mapping[str, Any]) -> bool:
    return any(inputs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))


def refuse_without_text(prompt: Prompt, names: Iterable[str]) -> None:
    """Raise InputError where a row has no text after its picture and a signal of `names` reads that text."""
    reads = sorted(name for name in names if "T" in signal_info(name).shape)
    silent = (prompt.text >= 0).sum(1) == 0 if prompt.text.numel() else torch.ones(len(prompt.rows)).bool()
    if reads and silent.any():
        sample = prompt.rows[int(silent.nonzero()[0])]
        raise InputError(
            f"sample {sample} has no text after its picture, which {', '.join(reads)} is made of; put the "
            "question after the picture, or choose a method that reads no text"
        )


def _pad(rows: list[Tensor], value: int = 0) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _repeats(kinds: Tensor, tokens: int) -> int:
    """How often each sample stands in the batch for one encoded picture set (beams, return sequences)."""
    found = int((kinds > 0).sum())
    if tokens == 0 or found % tokens or len(kinds) % max(1, found // tokens):
        return 1
    times = found // tokens
    same = torch.equal(kinds, kinds[::times].repeat_interleave(times, dim=0))
    return times if times > 1 and same else 1


def _assign(kinds: Tensor, images: list[Picture], *, videos: list[Picture]) -> Tensor:
    """`[B,L]`: index of each visual column among all tokens, images first, then videos; -1 elsewhere."""
    owner = torch.full_like(kinds, -1)
    offset = 0
    for number, name, found in ((1, "image", images), (2, "video", videos)):
        tokens = sum(len(picture) for picture in found)
        here = kinds == number
        if int(here.sum()) != tokens:
            raise ModelError(
                f"the prompt has {int(here.sum())} {name} tokens but its {name}s give {tokens}; use the "
                "processor of this model to build the inputs"
            )
        owner[here] = torch.arange(offset, offset + tokens)
        offset += tokens
    return owner


def _free(may_go: Tensor, owner: Tensor, *, pictures: list[Picture]) -> tuple[Tensor, Tensor, list[int]]:
    """Prunable columns among `may_go` `[B,L]`, and the group of each (crops, frames of a row counted up)."""
    flat = _concatenate(pictures)
    crop = flat["crop"]
    number = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pictures)])
    free = (owner >= 0) & may_go & flat["free"][owner.clamp_min(0)]
    group = torch.zeros_like(owner)
    counts = []
    for b in range(len(owner)):
        columns = free[b].nonzero().squeeze(1)
        key = number[owner[b][columns]] * (int(crop.max()) + 1) + crop[owner[b][columns]]
        unique, first_seen = key.unique(return_inverse=True)
        order = torch.full((len(unique),), len(owner[b])).scatter_reduce(
            0, first_seen, torch.arange(len(key)), "amin", include_self=True
        )
        group[b][columns] = order.argsort().argsort()[first_seen]
        counts.append(len(unique))
    return free, group, counts


def _concatenate(pictures: list[Picture]) -> dict[str, Tensor]:
    return {name: torch.cat([getattr(p, name) for p in pictures]) for name in (*_GEOMETRY, "crop", "free")}
