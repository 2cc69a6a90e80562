"""SmolVLM and Idefics3: sub-images of one size, neighbouring patches shuffled into each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.capture.encoder import WITHOUT_CLS, Encoder


class Idefics3Adapter(ModelAdapter):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`.

    Groups are sub-images (splits, the global picture, frames).  There is no CLS token: `cls_attention` is
    `received_attention`.  Encoder signals are means over the patches that one token merges; they need
    sub-images without padded pixels.
    """

    family: ClassVar[str] = "SmolVLM/Idefics3"
    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    encoder_signals: ClassVar[tuple[str, ...]] = tuple(
        name for name in WITHOUT_CLS if name not in ("encoder_attention", "patches")
    )
    text_path: ClassVar[str] = "text_model"

    @property
    def merge(self) -> int:
        return int(self.config.scale_factor)

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        pixels = inputs["pixel_values"].flatten(0, 1)
        real = int((pixels != 0).flatten(1).any(1).sum())
        patch = int(self.config.vision_config.patch_size)
        height, width = (int(size) // patch // self.merge for size in pixels.shape[-2:])
        return [Picture.plain(width, height)] * real, []

    def pack(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        mask = inputs.get("pixel_attention_mask")
        pixels = inputs["pixel_values"]
        if mask is not None:
            real = (pixels != 0).flatten(2).any(2)
            if not bool(mask.bool().flatten(2).all(2)[real].all()):
                raise ModelError(
                    "encoder signals of pictures with padded pixels are not defined; let the processor "
                    "resize them to full size, or use a method without encoder signals"
                )
        shuffled = self.base.connector.pixel_shuffle(signal.contiguous(), self.merge)
        return shuffled.unflatten(2, (self.merge**2, -1)).float().mean(2).flatten(0, 1)

    def encoder(self) -> Encoder:
        tower = self._find(self.base, "vision_model")
        return Encoder(tower, self._find(tower, "encoder.layers"), projector=self.base.connector)
