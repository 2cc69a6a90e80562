"""LLaVA-1.5: one grid per image, every patch a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.capture.encoder import TOWER_SIGNALS, Encoder, feature_block


class LlavaAdapter(ModelAdapter):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower and a Llama-like language model.

    With `vision_feature_select_strategy="full"` and a CLIP tower the CLS row is a token too: it stays, like
    text.
    """

    family: ClassVar[str] = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    encoder_signals: ClassVar[tuple[str, ...]] = TOWER_SIGNALS

    def __init__(self, model: nn.Module):
        super().__init__(model)
        vision = self.config.vision_config
        if not hasattr(vision, "image_size") or vision.model_type == "pixtral":
            raise ModelError(
                f"a {vision.model_type} tower gives every picture a grid of its own size, which the "
                f"{self.family} adapter does not know; CLIP and SigLIP towers are supported"
            )

    @property
    def cls(self) -> int:
        """Leading tokens of the tower that are no patches: 1 for CLIP, 0 for SigLIP."""
        return int(hasattr(self._find(self.base.vision_tower, "embeddings"), "class_embedding"))

    @property
    def lead(self) -> int:
        """Leading tokens that the model passes on with the patches of a crop."""
        return self.cls if self.config.vision_feature_select_strategy == "full" else 0

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        picture = Picture.plain(self.side, self.side)
        if self.lead:
            picture = picture.separated(torch.arange(-1, len(picture)))
        return [picture] * int(inputs["pixel_values"].shape[0]), []

    def pack(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return self.padded(signal).flatten(0, 1)

    def padded(self, signal: Tensor) -> Tensor:
        """`[crops,P,C]` with a zero row where the model passes the CLS row on."""
        if self.lead and signal.shape[1] == self.side**2:
            return torch.cat([signal.new_zeros(len(signal), self.lead, signal.shape[2]), signal], 1)
        return signal

    def encoder(self) -> Encoder:
        tower = self.base.vision_tower
        blocks = self._find(tower, "encoder.layers")
        block = feature_block(self.config.vision_feature_layer, len(blocks))
        projector, patch = self.base.multi_modal_projector, int(self.config.vision_config.patch_size)
        return Encoder(tower, blocks, projector=projector, cls=self.cls, block=block, patch=patch)
