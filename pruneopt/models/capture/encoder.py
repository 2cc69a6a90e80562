"""Signals of a vision encoder with separate query and key projections (CLIP, SigLIP, Idefics, InternViT).

Nothing asks for attention maps: queries and keys of one block are captured by hooks and the few rows that a
method reads are recomputed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.capture.probe import attention_rows, received_attention
from pruneopt.models.capture.watched import Watched
from pruneopt.signals import Place, signal_info

Slot = tuple[str, int]  # a capture, and the block that it is of


class Encoder:
    """Captures what signals of one encoder need, and turns it into per-crop tensors.

    A family whose encoder is built in another way says in `captures` what is watched, in `stands_for` which
    of those together are a capture that the table of signals names, and overrides the methods that read them.

    Parameters
    ----------
    tower: the module that takes `pixel_values`.  blocks: its transformer blocks.  projector: the module whose
    input are the features before projection.  attention: name of the attention module in a block.  cls:
    leading tokens that are no patches (1 with a CLS token).  block: index of the block that layer-less names
    mean: the one whose output the model reads.  patch: side of a patch in pixels, where `patches` are read.
    """

    captures: ClassVar[Mapping[str, Watched]] = {
        "pixels": Watched("tower", "input"),
        "features": Watched("projector", "input"),
        "output": Watched("block", "output"),
        "q": Watched("attention", "output", ("q_norm", "q_proj")),
        "k": Watched("attention", "output", ("k_norm", "k_proj")),
    }
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(
        self,
        tower: Any,
        blocks: Any,
        *,
        projector: Any,
        attention: str = "self_attn",
        cls: int = 0,
        block: int = -1,
        patch: int = 0,
    ):
        self.tower, self.blocks, self.attention = tower, blocks, attention
        self.projector, self.cls, self.block, self.patch = projector, cls, block % len(blocks), patch
        self.raw: dict[Slot, list[Any]] = {}

    def resolve(self, layer: int | None) -> int:
        """Block index of the layer in a signal name; negative ones count from the last block."""
        if layer is None:
            return self.block
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ModelError(f"the vision encoder has {len(self.blocks)} blocks; there is no block {layer}")
        return layer % len(self.blocks)

    def check(self, base: str) -> None:
        """Raise ModelError for a signal that this encoder does not have."""
        if signal_info(base).place is Place.CROP and not self.cls:
            raise ModelError(
                f"this vision encoder has no CLS token, so there is no {base!r}; choose a method that reads "
                "cls_attention (answered by received_attention here) or received_attention"
            )

    def slots(self, base: str, layer: int | None) -> list[Slot]:
        """What must be captured for a signal."""
        block, names = self.resolve(layer), signal_info(base).made_from
        return [(capture, block) for name in names for capture in self.stands_for.get(name, (name,))]

    def watch(self, slots: set[Slot], add: Callable[[nn.Module, str, Any], None]) -> None:
        """Register captures through `add(module, what, callback)`."""
        for slot in sorted(slots):

            def keep(value: Any, slot: Slot = slot) -> None:
                self.raw.setdefault(slot, []).append(self.kept(slot[0], value))

            capture, block = slot
            module = self.blocks[block]
            owners = {"tower": self.tower, "projector": self.projector, "block": module,
                      "attention": getattr(module, self.attention)}  # fmt: skip
            watched = self.captures[capture]
            add(watched.module(owners[watched.owner]), watched.what, keep)

    def kept(self, capture: str, value: Any) -> Any:
        """What is remembered of a captured value."""
        return (value[0] if isinstance(value, tuple) else value).detach()

    def clear(self) -> None:
        self.raw.clear()

    def calls(self, slot: Slot) -> int:
        return len(self.raw.get(slot, ()))

    def heads(self) -> int:
        return int(getattr(self.blocks[0], self.attention).num_heads)

    def compute(self, base: str, layer: int | None, *, call: int) -> Tensor:
        """One signal of one call: per patch `[crops,P,...]`, per crop `[crops,...]`, with the axes of its row
        in their order.
        """
        return ENCODER_SIGNALS[base](self, self.resolve(layer), call)

    # what signals are made of: one call of the encoder, `[crops,S,...]` with all its tokens

    def states(self, block: int, call: int, *, capture: str) -> Tensor:
        """`[crops,S,H,d]`: queries `q` or keys `k`."""
        states: Tensor = self.raw[capture, block][call]
        return states.reshape(*states.shape[:2], self.heads(), -1)

    def pair(self, block: int, call: int) -> tuple[Tensor, Tensor, float]:
        """Queries and keys `[crops,H,S,d]`, as its attention compares them, and their scale."""
        query, key = (self.states(block, call, capture=kind).transpose(1, 2) for kind in ("q", "k"))
        return query, key, query.shape[3] ** -0.5

    def output(self, block: int, call: int) -> Tensor:
        """`[crops,S,C]` of a block."""
        found: Tensor = self.raw["output", block][call]
        return found

    def features(self, block: int, call: int) -> Tensor:
        """`[crops,P,C]` before the projector."""
        found: Tensor = self.raw["features", block][call]
        return found

    def patches(self, block: int, call: int) -> Tensor:
        """`[crops,P,3,p,p]` pixels."""
        side, pixels = self.patch, self.raw["pixels", block][call]
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        tiles = flat.unfold(2, side, side).unfold(3, side, side)  # [n,3,h,w,p,p]
        return tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)

    def received(self, block: int, call: int) -> Tensor:
        """`[crops,P,H]`: mean attention that each patch receives from all tokens."""
        query, key, scale = self.pair(block, call)
        return received_attention(query, key, scale=scale)[:, :, self.cls :].transpose(1, 2)

    def from_cls(self, block: int, call: int) -> Tensor:
        """`[crops,P,H]`: attention of the CLS token; without one, what each patch receives."""
        if not self.cls:
            return self.received(block, call)
        query, key, scale = self.pair(block, call)
        rows = attention_rows(query[:, :, :1], key, allowed=None, scale=scale)
        return rows[:, :, 0, self.cls :].transpose(1, 2)

    def maps(self, block: int, call: int) -> Tensor:
        """`[crops,P,H,P]`: attention between patches."""
        query, key, scale = self.pair(block, call)
        rows = attention_rows(query, key, allowed=None, scale=scale)
        return rows[:, :, self.cls :, self.cls :].transpose(1, 2)


# what a signal is made of, at a block and a call
ENCODER_SIGNALS: dict[str, Callable[..., Tensor]] = {
    "encoder_features": lambda encoder, *at: encoder.features(*at),
    "encoder_keys": lambda encoder, *at: encoder.states(*at, capture="k")[:, encoder.cls :],
    "encoder_queries": lambda encoder, *at: encoder.states(*at, capture="q")[:, encoder.cls :],
    "cls_query": lambda encoder, *at: encoder.states(*at, capture="q")[:, 0],
    "cls_key": lambda encoder, *at: encoder.states(*at, capture="k")[:, 0],
    "cls_feature": lambda encoder, *at: encoder.output(*at)[:, 0],
    "cls_attention": lambda encoder, *at: encoder.from_cls(*at),
    "received_attention": lambda encoder, *at: encoder.received(*at),
    "encoder_attention": lambda encoder, *at: encoder.maps(*at),
    "patches": lambda encoder, *at: encoder.patches(*at),
}
TOWER_SIGNALS = tuple(ENCODER_SIGNALS)
WITHOUT_CLS = tuple(name for name in TOWER_SIGNALS if signal_info(name).place is not Place.CROP)


def feature_block(layer: Any, blocks: int) -> int:
    """Block whose output `vision_feature_layer` names: an index into hidden states, embeddings first.

    Of several layers (LLaVA variants that concatenate) the last one counts.
    """
    layer = layer[-1] if isinstance(layer, (list, tuple)) else layer
    return (layer if layer >= 0 else layer + blocks + 1) - 1
