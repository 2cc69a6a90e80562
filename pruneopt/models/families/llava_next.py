"""LLaVA-NeXT: a base crop and high-resolution tiles, unpadded, with newline tokens between rows.

Where a token comes from is read off the model itself: coordinates travel through its own packing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.base import Picture
from pruneopt.models.families.llava import LlavaAdapter


class LlavaNextAdapter(LlavaAdapter):
    """`LlavaNextForConditionalGeneration`.

    Groups are crops: the base crop first, then each tile.  Newline tokens stay, like text.
    """

    family: ClassVar[str] = "LLaVA-NeXT"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if self.lead:
            raise ModelError(
                f"{self.family} with a CLIP tower and vision_feature_select_strategy='full' cannot be used: "
                "the model's own packing of tiles has no place for the CLS row; use 'default'"
            )

    def crops(self, inputs: Mapping[str, Any]) -> list[int]:
        """Crops of each image, base crop included."""
        count = sys.modules[type(self.base).__module__].image_size_to_num_patches
        pinpoints, size = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        return [int(count(one, pinpoints, size)) for one in inputs["image_sizes"]]

    def packed(self, crops: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
        """The model's own packing of per-crop values; newline rows are zero."""
        newline = crops[0].new_zeros(crops[0].shape[-1])
        found, _ = self.base.pack_image_features(
            crops,
            inputs["image_sizes"],
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return list(found)

    def pack(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return torch.cat(self.packed(list(torch.split(signal, self.crops(inputs))), inputs))

    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        if inputs.get("pixel_values") is None:
            return [], []
        counts = self.crops(inputs)
        marked = [self.marks(count) for count in counts]
        found = []
        for number, values in enumerate(self.packed(marked, inputs)):
            x, y, crop, free = values.round().long().unbind(1)
            tile = self.tiles(crop, counts[number], size=inputs["image_sizes"][number])
            grid = torch.full_like(tile, self.side)
            found.append(
                Picture(torch.stack([x, y], 1), grid, crop, tile, torch.zeros_like(crop), free.bool())
            )
        return found, []

    def marks(self, crops: int) -> Tensor:
        """`[crops,P,4]`: column, row, crop number and 1 for every patch."""
        index = torch.arange(self.side**2)
        cell = torch.stack([index % self.side, index // self.side], 1).expand(crops, -1, 2)
        crop = torch.arange(crops)[:, None, None].expand(-1, len(index), 1)
        return torch.cat([cell, crop, torch.ones_like(crop)], 2).double()

    def tiles(self, crop: Tensor, crops: int, *, size: Any) -> Tensor:
        """`[n,2]`: column and row of each token's tile, -1 for the base crop of a tiled image."""
        if crops == 1:
            return torch.zeros(len(crop), 2, dtype=torch.int64)
        shape = sys.modules[type(self.base).__module__].get_anyres_image_grid_shape
        _, wide = shape(size, self.config.image_grid_pinpoints, self.config.vision_config.image_size)
        number = crop - 1
        place = torch.stack([number % wide, torch.div(number, wide, rounding_mode="floor")], 1)
        return place.masked_fill((crop == 0)[:, None], -1)
