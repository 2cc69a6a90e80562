"""Qwen2.5-VL: as Qwen2-VL, with an encoder whose blocks mostly attend within windows."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from pruneopt.models.capture.encoder import Encoder
from pruneopt.models.compat import window_order
from pruneopt.models.families.qwen2_vl import Qwen2VLAdapter, QwenEncoder


class Qwen25VLAdapter(Qwen2VLAdapter):
    """`Qwen2_5_VLForConditionalGeneration`.

    The last block attends over the whole image; a signal of a windowed block (`received_attention@-2`) is
    local to its window.
    """

    family: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def encoder(self) -> Encoder:
        found = super().encoder()
        assert isinstance(found, QwenEncoder)
        found.order = partial(_order, tower=self.base.visual)
        return found


def _order(grid: Tensor, tower: Any) -> Tensor:
    return window_order(grid, tower.spatial_merge_size, window=tower.window_size, patch=tower.patch_size)
