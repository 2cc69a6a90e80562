"""Qwen2-VL: any resolution, tokens that merge 2x2 patches, three-axis positions (M-RoPE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.capture.encoder import WITHOUT_CLS, Encoder
from pruneopt.models.capture.probe import attention_rows, received_attention, vision_rotary_function
from pruneopt.models.capture.watched import Watched


class QwenEncoder(Encoder):
    """Packed patches of all images in one row, fused projections, rotary positions, attention per segment.

    Every value is the mean over the patches that one token merges.  There is no CLS token: `cls_attention`
    is `received_attention`, over the segment (image, frame, or window) that the block attends within.
    """

    order: Callable[[Tensor], Tensor] | None = None

    captures: ClassVar[Mapping[str, Watched]] = {
        **Encoder.captures,
        "grid": Watched("tower", "call"),
        "qkv": Watched("attention", "output", ("qkv",)),
        "call": Watched("attention", "call"),
    }
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "features": ("features", "grid"),
        "q": ("qkv", "call", "grid"),
        "k": ("qkv", "call", "grid"),
    }

    def __init__(self, tower: Any, *, merge: int, patch: int):
        super().__init__(tower, tower.blocks, projector=tower.merger, attention="attn", patch=patch)
        self.merge = merge

    def kept(self, capture: str, value: Any) -> Any:
        if capture == "grid":
            args, kwargs = value
            return kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        return value if capture == "call" else super().kept(capture, value)

    # everything is `[1, tokens of all images, ...]`

    def states(self, block: int, call: int, *, capture: str) -> Tensor:
        return self._merged(self._qkv(block, call)["qk".index(capture)], block, call=call)

    def features(self, block: int, call: int) -> Tensor:
        patches = int(self.raw["grid", block][call].prod(1).sum())
        return self._merged(super().features(block, call).reshape(patches, -1), block, call=call)

    def patches(self, block: int, call: int) -> Tensor:
        """First frame of each patch, its group laid out as one picture."""
        side, merge, pixels = self.patch, self.merge, self.raw["pixels", block][call]
        frames = pixels.shape[1] // (3 * side * side)
        cells = pixels.reshape(-1, merge, merge, 3, frames, side, side)[:, :, :, :, 0]
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 3, merge * side, merge * side)

    def received(self, block: int, call: int) -> Tensor:
        """Within the segment of the patch."""
        scale = self.blocks[block].attn.scaling
        found = [received_attention(q, k, scale=scale)[0] for _, q, k in self._segments(block, call)]
        return self._merged(torch.cat(found, 1).transpose(0, 1), block, call=call)

    def maps(self, block: int, call: int) -> Tensor:
        """Zero across segments, mean over merged patches."""
        unit, grid = self.merge**2, self.raw["grid", block][call]
        tokens = int(grid.prod(1).sum()) // unit
        out = torch.zeros(self.heads(), tokens, tokens, device=self._qkv(block, call)[0].device)
        for rows, q, k in self._segments(block, call):
            merged = attention_rows(q, k, allowed=None, scale=self.blocks[block].attn.scaling)[0]
            merged = merged.unflatten(2, (-1, unit)).mean(3).unflatten(1, (-1, unit)).mean(2)
            here = slice(rows.start // unit, rows.stop // unit)
            out[:, here, here] = merged
        if self.order is not None:
            place = self.order(grid).to(out.device).argsort()
            out = out[:, place][:, :, place]
        return out.transpose(0, 1)[None]

    def _qkv(self, block: int, call: int) -> tuple[Tensor, ...]:
        """Queries, keys and values of all patches, `[S,H,d]` each."""
        states = self.raw["qkv", block][call]
        return states.reshape(len(states), 3, self.heads(), -1).unbind(1)  # type: ignore[no-any-return]

    def _segments(self, block: int, call: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rotated queries and keys `[1,H,s,d]` of each segment that the block attends within."""
        attention = self.blocks[block].attn
        args, kwargs = self.raw["call", block][call]
        bounds = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1]
        cos, sin = kwargs["position_embeddings"]
        query, key, _ = self._qkv(block, call)
        query, key = vision_rotary_function(attention)(query.float(), key.float(), cos, sin)
        for start, end in pairwise(bounds.tolist()):
            q, k = (part[start:end].transpose(0, 1)[None] for part in (query, key))
            yield slice(start, end), q, k

    def _merged(self, values: Tensor, block: int, *, call: int) -> Tensor:
        """Mean over each group of merged patches, in token order: `[S,...]` to `[1,tokens,...]`."""
        grouped = values.unflatten(0, (-1, self.merge**2)).float().mean(1)
        if self.order is None:
            return grouped[None]
        return grouped[self.order(self.raw["grid", block][call]).to(grouped.device).argsort()][None]


class Qwen2VLAdapter(ModelAdapter):
    """`Qwen2VLForConditionalGeneration`.  Groups are images, and frames of videos (pairs, as merged)."""

    family: ClassVar[str] = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    encoder_signals: ClassVar[tuple[str, ...]] = WITHOUT_CLS
    video_token: ClassVar[str | None] = "video_token_id"

    @property
    def merge(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        out: list[list[Picture]] = []
        for pixels, name in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            grids = inputs[name].tolist() if inputs.get(pixels) is not None else []
            out.append([Picture.plain(w // self.merge, h // self.merge, frames=t) for t, h, w in grids])
        return out[0], out[1]

    def encoder(self) -> Encoder:
        tower = self._find(self.base, "visual")
        self._find(tower, "blocks")
        return QwenEncoder(tower, merge=self.merge, patch=int(self.config.vision_config.patch_size))
