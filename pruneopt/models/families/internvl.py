"""InternVL: tiles of one size, four neighbouring patches shuffled into each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.capture.encoder import TOWER_SIGNALS, Encoder, feature_block


class InternVLAdapter(ModelAdapter):
    """`InternVLForConditionalGeneration` (the Hugging Face port).

    Groups are tiles and frames; which tiles belong to one image is not told to the model, so `tile` is
    (0, 0) everywhere.  Encoder signals are means over the patches that one token merges.
    """

    family: ClassVar[str] = "InternVL"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    encoder_signals: ClassVar[tuple[str, ...]] = tuple(
        name for name in TOWER_SIGNALS if name not in ("encoder_attention", "patches")
    )

    @property
    def merge(self) -> int:
        return round(1 / float(self.config.downsample_ratio))

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        side = self.side // self.merge
        return [Picture.plain(side, side)] * int(inputs["pixel_values"].shape[0]), []

    def pack(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        if signal.shape[1] != self.side**2:  # the projector already sees shuffled patches
            return signal.flatten(0, 1)
        maps = signal.unflatten(1, (self.side, self.side)).contiguous()
        shuffled = self.base.pixel_shuffle(maps, scale_factor=self.config.downsample_ratio)
        return shuffled.unflatten(3, (self.merge**2, -1)).float().mean(3).flatten(0, 2)

    def encoder(self) -> Encoder:
        tower = self.base.vision_tower
        blocks = self._find(tower, "encoder.layer")
        cls = int(self.config.vision_feature_select_strategy == "default")
        block = feature_block(self.config.vision_feature_layer, len(blocks))
        projector = self.base.multi_modal_projector
        return Encoder(tower, blocks, attention="attention", projector=projector, cls=cls, block=block)
