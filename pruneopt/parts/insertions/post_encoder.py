"""Before the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.parts import Insertion
from pruneopt.signals import Place, signals_at


@dataclass(frozen=True)
class PostEncoder(Insertion):
    """Remove projected visual tokens before the first decoder layer; no layer ever sees them."""

    name: ClassVar[str] = "post_encoder"

    @property
    def layer_index(self) -> int:
        return 0

    @property
    def provides(self) -> frozenset[str]:
        return signals_at(Place.GEOMETRY, Place.ENTRY, Place.ENCODER, Place.CROP)
