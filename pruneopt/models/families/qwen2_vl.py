"""Qwen2-VL: any resolution, tokens that merge 2x2 patches, three-axis positions (M-RoPE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.capture.encoder import Encoder
from pruneopt.models.capture.probe import attention_rows, received_attention, vision_rotary_function

QWEN_SIGNALS = (
    "encoder_features", "encoder_keys", "encoder_queries", "cls_attention", "received_attention",
    "encoder_attention", "patches",
)  # fmt: skip


class QwenEncoder(Encoder):
    """Packed patches of all images in one row, fused projections, rotary positions, attention per segment.

    Every value is the mean over the patches that one token merges.  There is no CLS token: `cls_attention`
    is `received_attention`, over the segment (image, frame, or window) that the block attends within.
    """

    order: Callable[[Tensor], Tensor] | None = None

    def __init__(self, tower: Any, block: int, merge: int, patch: int):
        super().__init__(tower, tower.blocks, "attn", tower.merger, 0, block, patch)
        self.merge = merge

    def heads(self) -> int:
        return int(self.blocks[0].attn.num_heads)

    def slots(self, base: str, layer: int | None) -> list[tuple[str, int]]:
        block = self.resolve(layer)
        grid = [("grid", 0)]
        if base == "patches":
            return [("pixels", 0), *grid]
        if base == "encoder_features":
            return [("features", 0), *grid]
        return [("qkv", block), ("call", block), *grid]

    def watch(self, slots: set[tuple[str, int]], add: Callable[[nn.Module, str, Any], None]) -> None:
        for slot in sorted(slots):

            def keep(value: Any, slot: tuple[str, int] = slot) -> None:
                self.raw.setdefault(slot, []).append(value)

            def grid(call: Any, slot: tuple[str, int] = slot) -> None:
                args, kwargs = call
                value = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
                self.raw.setdefault(slot, []).append(value)

            kind, block = slot
            if kind == "grid":
                add(self.tower, "call", grid)
            elif kind == "call":
                add(self.blocks[block].attn, "call", keep)
            elif kind == "qkv":
                add(self.blocks[block].attn.qkv, "output", keep)
            else:
                add(self.tower if kind == "pixels" else self.projector, "input", keep)

    def compute(self, base: str, layer: int | None, call: int) -> Tensor:
        """`[1, tokens of all images, C]`."""
        block = self.resolve(layer)
        if base == "patches":
            return self._pixels(self.raw["pixels", 0][call])[None]
        grid = self.raw["grid", 0][call]
        if base == "encoder_features":
            return self._merged(self.raw["features", 0][call].reshape(int(grid.prod(1).sum()), -1), grid)[
                None
            ]
        states = self.raw["qkv", block][call]
        query, key, _ = states.reshape(len(states), 3, self.heads(), -1).unbind(1)
        if base in ("encoder_keys", "encoder_queries"):
            return self._merged((key if base == "encoder_keys" else query).flatten(1), grid)[None]
        if base == "encoder_attention":
            return self._maps(query, key, block, call, grid)[None]
        return self._merged(self._received(query, key, block, call), grid)[None]

    def _segments(
        self, query: Tensor, key: Tensor, block: int, call: int
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rotated queries and keys `[1,H,s,d]` of each segment that the block attends within."""
        attention = self.blocks[block].attn
        args, kwargs = self.raw["call", block][call]
        bounds = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1]
        cos, sin = kwargs["position_embeddings"]
        query, key = vision_rotary_function(attention)(query.float(), key.float(), cos, sin)
        for start, end in pairwise(bounds.tolist()):
            q, k = (part[start:end].transpose(0, 1)[None] for part in (query, key))
            yield slice(start, end), q, k

    def _received(self, query: Tensor, key: Tensor, block: int, call: int) -> Tensor:
        """Mean attention that each patch receives within its segment, `[S,H]`."""
        scale = self.blocks[block].attn.scaling
        found = [received_attention(q, k, scale)[0] for _, q, k in self._segments(query, key, block, call)]
        return torch.cat(found, 1).transpose(0, 1)

    def _maps(self, query: Tensor, key: Tensor, block: int, call: int, grid: Tensor) -> Tensor:
        """Attention between tokens, zero across segments, mean over merged patches: `[tokens, H*tokens]`."""
        unit, heads = self.merge**2, self.heads()
        tokens = len(query) // unit
        out = torch.zeros(heads, tokens, tokens, device=query.device)
        for rows, q, k in self._segments(query, key, block, call):
            merged = attention_rows(q, k, None, self.blocks[block].attn.scaling)[0]
            merged = merged.unflatten(2, (-1, unit)).mean(3).unflatten(1, (-1, unit)).mean(2)
            here = slice(rows.start // unit, rows.stop // unit)
            out[:, here, here] = merged
        if self.order is not None:
            place = self.order(grid).to(out.device).argsort()
            out = out[:, place][:, :, place]
        return out.transpose(0, 1).flatten(1)

    def _merged(self, values: Tensor, grid: Tensor) -> Tensor:
        """Mean over each group of merged patches, in the order of the tokens: `[S,C]` to `[tokens,C]`."""
        grouped = values.unflatten(0, (-1, self.merge**2)).float().mean(1)
        if self.order is None:
            return grouped
        return grouped[self.order(grid).to(grouped.device).argsort()]

    def _pixels(self, pixels: Tensor) -> Tensor:
        """First frame of each patch, its group laid out as one picture: `[tokens, 3*side*side]`."""
        side, merge = self.patch, self.merge
        cells = pixels.reshape(-1, merge, merge, 3, pixels.shape[1] // (3 * side * side), side, side)[
            :, :, :, :, 0
        ]
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), -1)


class Qwen2VLAdapter(ModelAdapter):
    """`Qwen2VLForConditionalGeneration`.  Groups are images, and frames of videos (pairs, as merged)."""

    family: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    encoder_signals: ClassVar[tuple[str, ...]] = QWEN_SIGNALS
    video_token: ClassVar[str | None] = "video_token_id"

    @property
    def merge(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        out: list[list[Picture]] = []
        for pixels, name in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            grids = inputs[name].tolist() if inputs.get(pixels) is not None else []
            out.append([Picture.plain(w // self.merge, h // self.merge, t) for t, h, w in grids])
        return out[0], out[1]

    def encoder(self) -> Encoder:
        tower = self._find(self.base, "visual")
        self._find(tower, "blocks")
        return QwenEncoder(
            tower, len(tower.blocks) - 1, self.merge, int(self.config.vision_config.patch_size)
        )
