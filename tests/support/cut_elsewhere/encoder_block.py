"""Where: between two blocks of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.parts import Insertion, param


@dataclass(frozen=True)
class EncoderBlock(Insertion):
    """Remove patches after `block` blocks of the vision encoder; no decoder layer sees them either."""

    name: ClassVar[str] = "encoder_block"
    site: ClassVar[str] = "encoder_block"
    applies: ClassVar[frozenset[str]] = frozenset({"removal"})
    block: int = param(1, low=1, doc="blocks that run on all patches")

    @property
    def layer_index(self) -> int:
        return 0

    @property
    def depth(self) -> tuple[int, int]:
        return 0, self.block

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"features", "xy", "grid"})
