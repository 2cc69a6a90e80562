"""Qwen3-VL: as Qwen2-VL, with encoder features added to the stream after the first decoder layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pruneopt.models.families.qwen2_vl import Qwen2VLAdapter


class Qwen3VLAdapter(Qwen2VLAdapter):
    """`Qwen3VLForConditionalGeneration`.

    A cut inside the layers that receive deepstack features takes the features of the survivors along; merged
    tokens keep the features of the token they were merged into.
    """

    family: ClassVar[str] = "Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)

    def take_deepstack(self, kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]] | None:
        mask, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        return None if mask is None or features is None else (mask, list(features))

    def without_deepstack(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
