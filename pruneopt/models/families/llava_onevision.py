"""LLaVA-OneVision: tiles resized to a token limit, several images without tiles, videos of pooled frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.models.base import Picture
from pruneopt.models.families.llava_next import LlavaNextAdapter


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """`LlavaOnevisionForConditionalGeneration`.

    Groups of an image are its base crop and its whole high-resolution map, whose tokens may be interpolated
    over tiles; `xy` and `grid` count on that map.  Groups of a video are its frames.  Newline tokens stay.
    Encoder signals are resized as the model resizes its features.
    """

    family: ClassVar[str] = "LLaVA-OneVision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    video_token: ClassVar[str | None] = "video_token_id"

    def crops(self, inputs: Mapping[str, Any]) -> list[int]:
        found = super().crops(inputs)
        numbers = inputs.get("batch_num_images")
        if numbers is None:
            return found
        alone = [int(n) == 1 for n in numbers for _ in range(int(n))]
        return [count if one else 1 for count, one in zip(found, alone, strict=True)]

    def packed(self, crops: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        found, _ = self.base.pack_image_features(
            crops,
            inputs["image_sizes"],
            image_newline=crops[0].new_zeros(crops[0].shape[-1]),
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return list(found)

    def pack_video(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        videos = int(inputs["pixel_values_videos"].shape[0])
        pooled = self.base.apply_pooling(signal).reshape(videos, -1, signal.shape[2])
        newline = pooled.new_zeros(videos, 1, signal.shape[2])
        return torch.cat([pooled, newline], 1).flatten(0, 1)

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        images, videos = [], []
        if inputs.get("pixel_values") is not None:
            marked = [torch.ones(count, self.side**2, 1) for count in self.crops(inputs)]
            images = [self._image(values[:, 0] > 0.5) for values in self.packed(marked, inputs)]
        frames = inputs.get("pixel_values_videos")
        if frames is not None:
            side = -(-self.side // 2)
            plain = Picture.plain(side, side, frames=int(frames.shape[1]))
            videos = [_with_newline(plain)] * int(frames.shape[0])
        return images, videos

    def _image(self, free: Tensor) -> Picture:
        """Base crop, then rows of the high-resolution map, each ended by a newline."""
        base = self.side**2
        rest = free[base:]
        if len(rest) == 1:
            return _with_newline(Picture.plain(self.side, self.side))
        width = int((~rest).nonzero()[0])
        height = len(rest) // (width + 1)
        index = torch.arange(len(rest))
        high = torch.stack([index % (width + 1), index // (width + 1)], 1)
        plain = Picture.plain(self.side, self.side)
        return Picture(
            torch.cat([plain.xy, high]),
            torch.cat([plain.grid, torch.tensor([width, height]).expand(len(rest), 2)]),
            (torch.arange(len(free)) >= base).long(),
            torch.cat([torch.full_like(plain.xy, -1), torch.zeros_like(high)]),
            torch.zeros(len(free), dtype=torch.int64),
            free,
        )


def _with_newline(picture: Picture) -> Picture:
    """The same picture followed by one separator."""
    return picture.separated(torch.arange(len(picture) + 1))
