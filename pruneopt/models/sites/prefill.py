"""Cuts between decoder layers while the prompt runs: `post_encoder` and `prefill_layer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.sites._site import Site
from pruneopt.spec.schema import Spec

if TYPE_CHECKING:
    from pruneopt.models.prefill import Prefill


class PrefillSite(Site):
    """Selects and removes before the decoder layer that an insertion names; every later layer is shorter."""

    name: ClassVar[str] = "prefill"

    def __init__(self, adapter: ModelAdapter, spec: Spec):
        super().__init__(adapter, spec)
        depth = len(adapter.layers)
        for stage in self.stages:
            if not 0 <= stage.insertion.layer_index < depth:
                raise ModelError(
                    f"insertion.layer={stage.insertion.layer_index} does not exist: this model has {depth} "
                    f"decoder layers, so tokens can be removed before layers 0 to {depth - 1}"
                )

    @property
    def layers(self) -> frozenset[int]:
        first = min(stage.insertion.layer_index for stage in self.stages)
        return frozenset(range(first, len(self.adapter.layers)))

    def before_layer(self, run: Prefill, index: int, *, hidden: Tensor) -> Tensor:
        for stage in self.stages:
            if stage.insertion.layer_index == index:
                hidden = run.cut(stage, hidden)
        return hidden
