"""LLaVA-NeXT-Video: LLaVA-NeXT for images, pooled frames for videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.models.base import Picture
from pruneopt.models.families.llava_next import LlavaNextAdapter


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`LlavaNextVideoForConditionalGeneration`.

    Groups of a video are its frames.  Encoder signals of frames are averaged over the pooling window, also
    where the model takes the maximum or a convolution.
    """

    family: ClassVar[str] = "LLaVA-NeXT-Video"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    video_token: ClassVar[str | None] = "video_token_id"

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        images, _ = super().pictures(inputs)
        videos = inputs.get("pixel_values_videos")
        if videos is None:
            return images, []
        side = self.side // int(self.config.spatial_pool_stride)
        return images, [Picture.plain(side, side, frames=int(videos.shape[1]))] * int(videos.shape[0])

    def pack_video(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        if signal.shape[1] != self.side**2:  # the projector already sees pooled frames
            return signal.flatten(0, 1)
        maps = signal.transpose(1, 2).unflatten(2, (self.side, self.side))
        pooled = torch.nn.functional.avg_pool2d(maps, int(self.config.spatial_pool_stride))
        return pooled.flatten(2).transpose(1, 2).flatten(0, 1)
