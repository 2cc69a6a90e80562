"""Where: in the cache that a prompt has filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.parts import Insertion, param


@dataclass(frozen=True)
class EvictedCache(Insertion):
    """Evict visual tokens from the caches of `layers` once the prompt has run; decoding never sees them."""

    name: ClassVar[str] = "evicted_cache"
    site: ClassVar[str] = "evicted_cache"
    applies: ClassVar[frozenset[str]] = frozenset({"removal"})
    layers: tuple[int, ...] = param((0,), doc="decoder layers whose caches are cut")

    @property
    def layer_index(self) -> int:
        return max(self.layers) + 1

    @property
    def depth(self) -> tuple[int, int]:
        return 2, self.layer_index

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"keys", "attention_last", "xy", "grid", "visual_index"})
