"""LLaVA-1.5: one grid per image, every patch a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pruneopt.models.base import ModelAdapter, Picture
from pruneopt.models.encoder import Encoder, feature_block

CLS_SIGNALS = (
    "encoder_features", "encoder_keys", "encoder_queries", "cls_query", "cls_key", "cls_feature",
    "cls_attention", "received_attention", "encoder_attention", "patches",
)  # fmt: skip


class LlavaAdapter(ModelAdapter):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower and a Llama-like language model.

    With `vision_feature_select_strategy="full"` the CLS row is a token too: it stays, like text.
    """

    family: ClassVar[str] = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    encoder_signals: ClassVar[tuple[str, ...]] = CLS_SIGNALS

    def crops(self, pixels: Any) -> int:
        return int(pixels.shape[0])

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size) // int(vision.patch_size)

    @property
    def cls(self) -> int:
        """Leading tokens of the tower that are no patches."""
        return int(hasattr(self._find(self.base.vision_tower, "embeddings"), "class_embedding"))

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        return [Picture.plain(self.side, self.side)] * self.crops(inputs["pixel_values"]), []

    def encoder(self) -> Encoder:
        tower = self.base.vision_tower
        blocks = self._find(tower, "encoder.layers")
        block = feature_block(self.config.vision_feature_layer, len(blocks))
        patch = int(self.config.vision_config.patch_size)
        return Encoder(tower, blocks, "self_attn", self.base.multi_modal_projector, self.cls, block, patch)
