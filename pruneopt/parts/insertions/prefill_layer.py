"""Inside the language model, after some of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.parts import Insertion, param
from pruneopt.signals import Place, signals_at


@dataclass(frozen=True)
class PrefillLayer(Insertion):
    """Remove visual tokens in the prefill pass after `layer` full decoder layers.

    Signals without a layer come from the last of those, 0-based index `layer - 1`; the first layer that
    runs without the removed tokens has index `layer`.  FastV's K and TopV's L_i count the same way.
    """

    name: ClassVar[str] = "prefill_layer"
    layer: int = param(2, low=1, doc="full decoder layers before the cut")

    @property
    def layer_index(self) -> int:
        return self.layer

    @property
    def provides(self) -> frozenset[str]:
        return signals_at(*Place)
