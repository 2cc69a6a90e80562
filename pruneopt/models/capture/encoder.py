"""Signals of a vision encoder with separate query and key projections (CLIP, SigLIP, Idefics, InternViT).

Nothing asks for attention maps: queries and keys of one block are captured by hooks and the few rows that a
method reads are recomputed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.capture.probe import attention_rows, received_attention


class Encoder:
    """Captures what signals of one encoder need, and turns it into per-crop tensors.

    Parameters
    ----------
    tower: the module that takes `pixel_values`.  blocks: its transformer blocks.  attention: name of the
    attention module in a block.  projector: the module whose input are the features before projection.
    cls: leading tokens that are no patches (1 with a CLS token).  block: index of the block that layer-less
    names mean: the one whose output the model reads.
    """

    def __init__(
        self, tower: Any, blocks: Any, attention: str, projector: Any, cls: int, block: int, patch: int = 0
    ):
        self.tower, self.blocks, self.attention = tower, blocks, attention
        self.projector, self.cls, self.block, self.patch = projector, cls, block % len(blocks), patch
        self.raw: dict[tuple[str, int], list[Tensor]] = {}

    def resolve(self, layer: int | None) -> int:
        """Block index of the layer in a signal name; negative ones count from the last block."""
        if layer is None:
            return self.block
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ModelError(f"the vision encoder has {len(self.blocks)} blocks; there is no block {layer}")
        return layer % len(self.blocks)

    def check(self, base: str) -> None:
        """Raise ModelError for a signal that this encoder does not have."""
        if base in ("cls_query", "cls_key", "cls_feature") and not self.cls:
            raise ModelError(
                f"this vision encoder has no CLS token, so there is no {base!r}; choose a method that reads "
                "cls_attention (answered by received_attention here) or received_attention"
            )

    def slots(self, base: str, layer: int | None) -> list[tuple[str, int]]:
        """What must be captured for a signal."""
        block = self.resolve(layer)
        if base == "patches":
            return [("pixels", 0)]
        if base == "encoder_features":
            return [("features", 0)]
        if base == "cls_feature":
            return [("output", block)]
        if base == "encoder_keys" or base == "cls_key":
            return [("k", block)]
        if base == "encoder_queries" or base == "cls_query":
            return [("q", block)]
        return [("q", block), ("k", block)]

    def watch(self, slots: set[tuple[str, int]], add: Callable[[nn.Module, str, Any], None]) -> None:
        """Register captures through `add(module, what, callback)`."""
        for slot in sorted(slots):
            kind, block = slot

            def keep(value: Any, slot: tuple[str, int] = slot) -> None:
                value = value[0] if isinstance(value, tuple) else value
                self.raw.setdefault(slot, []).append(value.detach())

            if kind == "pixels":
                add(self.tower, "input", keep)
            elif kind == "features":
                add(self.projector, "input", keep)
            elif kind == "output":
                add(self.blocks[block], "output", keep)
            else:
                attention = getattr(self.blocks[block], self.attention)
                add(self.projection(attention, kind), "output", keep)

    def projection(self, attention: Any, kind: str) -> nn.Module:
        """The module whose output are queries or keys of all heads."""
        found = getattr(attention, f"{kind}_norm", getattr(attention, f"{kind}_proj", None))
        if found is None:
            raise ModelError(
                f"{type(attention).__name__} has no {kind}_proj; looked for separate query and key "
                "projections"
            )
        return found

    def clear(self) -> None:
        self.raw.clear()

    def heads(self) -> int:
        attention = getattr(self.blocks[0], self.attention)
        return int(attention.num_heads)

    def _split(self, states: Tensor) -> Tensor:
        """`[crops,S,H*d]` to `[crops,H,S,d]`."""
        crops, length = states.shape[:2]
        return states.reshape(crops, length, self.heads(), -1).transpose(1, 2)

    def pair(self, block: int, call: int) -> tuple[Tensor, Tensor]:
        """Queries and keys `[crops,H,S,d]` of one call of the encoder, as its attention compares them."""
        return self._split(self.raw["q", block][call]), self._split(self.raw["k", block][call])

    def calls(self, slot: tuple[str, int]) -> int:
        return len(self.raw.get(slot, ()))

    def compute(self, base: str, layer: int | None, call: int) -> Tensor:
        """One signal of one call: `[crops,P,C]` per patch, or `[crops,C]` for cls_query, cls_key, "
        "cls_feature."""
        block = self.resolve(layer)
        if base == "patches":
            return self._patches(self.raw["pixels", 0][call])
        if base == "encoder_features":
            return self.raw["features", 0][call]
        if base == "cls_feature":
            return self.raw["output", block][call][:, 0]
        if base in ("encoder_keys", "encoder_queries"):
            return self.raw["k" if base == "encoder_keys" else "q", block][call][:, self.cls :]
        if base in ("cls_key", "cls_query"):
            return self.raw["k" if base == "cls_key" else "q", block][call][:, 0]
        query, key = self.pair(block, call)
        scale = query.shape[3] ** -0.5
        if base == "cls_attention" and self.cls:
            rows = attention_rows(query[:, :, :1], key, None, scale)[:, :, 0]
            return rows[:, :, self.cls :].transpose(1, 2)
        if base in ("received_attention", "cls_attention"):
            return received_attention(query, key, scale)[:, :, self.cls :].transpose(1, 2)
        if base == "encoder_attention":
            full = attention_rows(query, key, None, scale)[:, :, self.cls :, self.cls :]
            return full.permute(0, 2, 1, 3).flatten(2)
        raise ModelError(f"no signal {base!r} in this vision encoder")

    def _patches(self, pixels: Tensor) -> Tensor:
        side = self.patch
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        tiles = flat.unfold(2, side, side).unfold(3, side, side)  # [n,3,h,w,P,P]
        return tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)

    def shape(self, base: str, tokens: Tensor) -> Tensor:
        """Packed values `[B,N,C]` of a signal in its declared shape."""
        if base in ("cls_attention", "received_attention"):
            return tokens.transpose(1, 2)
        if base in ("encoder_keys", "encoder_queries"):
            return tokens.unflatten(2, (self.heads(), -1)).transpose(1, 2)
        if base == "patches":
            side = int((tokens.shape[2] // 3) ** 0.5)
            return tokens.unflatten(2, (3, side, side))
        return tokens


def feature_block(layer: Any, blocks: int) -> int:
    """Block whose output `vision_feature_layer` names: an index into hidden states, embeddings first.

    Of several layers (LLaVA variants that concatenate) the last one counts.
    """
    layer = layer[-1] if isinstance(layer, (list, tuple)) else layer
    return (layer if layer >= 0 else layer + blocks + 1) - 1
