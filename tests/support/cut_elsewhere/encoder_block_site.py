"""What: patches go between two blocks of a tower, their columns go before the first decoder layer.

The model expects features for every placeholder, so the survivors are put back on the grid, zeros between
them, before the projector; the columns of the zeros never reach a decoder layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.columns import take
from pruneopt.models.families.llava import LlavaAdapter
from pruneopt.models.hooks import Attachments
from pruneopt.models.prefill import Prefill
from pruneopt.models.refuse import refuse_selection
from pruneopt.models.sites import Site
from pruneopt.problems.selection import Selection
from pruneopt.pruner import Pruner
from pruneopt.signals import Signals
from pruneopt.spec.schema import Spec

_WHOLE = ("encoder_features", "patches")  # read where every patch has its place


class EncoderBlockSite(Site):
    """One cut inside a CLIP or SigLIP tower, for models that make one token of every patch."""

    name: ClassVar[str] = "encoder_block"

    def __init__(self, adapter: ModelAdapter, spec: Spec):
        super().__init__(adapter, spec)
        if type(adapter) is not LlavaAdapter:
            raise ModelError(f"encoder_block knows the towers of LLaVA-1.5, not those of {adapter.family}")
        self.stage = self.stages[0]
        insertion: Any = self.stage.insertion
        self.encoder, self.block = adapter.encoder(), int(insertion.block)
        self.lead, self.side = adapter.lead, adapter.side
        if len(self.stages) > 1 or not isinstance(adapter.config.vision_feature_layer, int):
            raise ModelError("encoder_block makes one cut in a tower of which one block is read")
        if self.block > self.encoder.block:
            raise ModelError(
                f"insertion.block={self.block}: the model reads the features of block {self.encoder.block}, "
                f"so a cut after it changes nothing; give a block from 1 to {self.encoder.block}"
            )
        if self.stage.budget.scope != "group":
            raise ModelError("all crops keep equally many patches inside the encoder; set budget.scope=group")
        for name in sorted(spec.needs):
            base, _, at = name.partition("@")
            if base not in adapter.encoder_signals or base in _WHOLE:
                continue
            if self.encoder.resolve(int(at) if at else None) >= self.block:
                raise ModelError(
                    f"signal {name!r} is of a block that runs without the removed patches; read one of the "
                    f"blocks 0 to {self.block - 1}, such as {base}@{self.block - 1}"
                )
        self.made: list[Selection] = []

    @classmethod
    def serves(cls, family: type[ModelAdapter]) -> bool:
        return family is LlavaAdapter

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(range(len(self.adapter.layers)))

    def attach(self, attachments: Attachments) -> None:
        attachments.before(self.encoder.blocks[self.block], self._cut)
        attachments.before(self.encoder.projector, self._put_back)

    def forget(self) -> None:
        self.made = []

    def _cut(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, cls = args[0], self.encoder.cls
        patches = hidden[:, cls:]
        with torch.no_grad():
            selection = Pruner(self.stage).select(self._signals(patches))
        refuse_selection(self.spec, self.stage, selection=selection)
        if len(set(selection.known_counts)) > 1:
            raise ModelError(
                f"crops keep {list(selection.known_counts)} patches; they must keep equally many"
            )
        self.made.append(selection)
        return (torch.cat([hidden[:, :cls], take(patches, selection.index())], 1), *args[1:]), kwargs

    def _signals(self, patches: Tensor) -> Signals:
        cell = torch.arange(self.side**2, device=patches.device)
        xy = torch.stack([cell % self.side, cell // self.side], 1).expand(len(patches), -1, -1)
        return Signals({"features": patches, "xy": xy, "grid": torch.full_like(xy, self.side)})

    def _put_back(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        short, lead, index = args[0], self.lead, self.made[-1].index()
        whole = short.new_zeros(len(short), self.side**2, short.shape[2])
        where = index[:, :, None].expand(-1, -1, short.shape[2])
        whole = whole.scatter(1, where, short[:, lead:])
        return (torch.cat([short[:, :lead], whole], 1), *args[1:]), kwargs

    def before_layer(self, run: Prefill, index: int, *, hidden: Tensor) -> Tensor:
        if index > 0:
            return hidden
        if len(self.made) != 1:
            raise ModelError("the vision encoder did not run once in this pass; pass pixel values")
        (made,) = self.made
        kept = self._tokens(made.keep, run).bool()
        gone = self._tokens(~made.keep, run).bool()
        gone[run.prompt.source[run.columns.mask]] = False  # these can go
        if gone.any():
            raise ModelError(
                "the encoder removed a token that cannot be removed: padding, or the last column"
            )
        importance = made.importance
        if importance is not None:
            importance = self._tokens(importance, run)[run.prompt.source]
        selection = Selection(
            kept[run.prompt.source] & run.columns.mask,
            importance=importance,
            solution=made.solution,
            diagnostics=made.diagnostics,
        )
        return run.remove(self.stage, selection, hidden=hidden, clock=run.clock())

    def _tokens(self, values: Tensor, run: Prefill) -> Tensor:
        """Patch values `[crops,P]` in the order of the packed tokens, zero where a token is no patch."""
        return self.adapter.pack(values[:, :, None].double(), run.sources.inputs)[:, 0]
