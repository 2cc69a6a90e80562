"""Similarity of the CLS query and the patch keys, computed from the projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import flat_heads


@dataclass(frozen=True)
class CLSSimilarity(Score):
    """Scaled product of the CLS query with every patch key, `[B,N]` float32; higher is kept.

    `heads=joined` treats the full width as one head (scale C^-0.5), as PruMerge's code does; `split` is
    ordinary multi-head attention, averaged.  `output=logits` stops before the softmax, as GlobalCom2's code
    does; `probs` divides over CLS and all patches.
    """

    name: ClassVar[str] = "cls_similarity"
    source: ClassVar[str] = "PruMerge and GlobalCom2 as released"
    layer: int = param(-1, doc="encoder layer, -1 is the last block")
    heads: str = param("split", choices=("split", "joined"), doc="multi-head or full width")
    output: str = param("probs", choices=("probs", "logits"), doc="before or after the softmax")

    @property
    def needs(self) -> frozenset[str]:
        names = {f"cls_query@{self.layer}", f"encoder_keys@{self.layer}"}
        return frozenset(names | ({f"cls_key@{self.layer}"} if self.output == "probs" else set()))

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        query = signals[f"cls_query@{self.layer}"].float()
        keys = signals[f"encoder_keys@{self.layer}"].float()
        if self.heads == "joined":
            query, keys = query.flatten(1)[:, None], flat_heads(keys)[:, None]
        scale = query.shape[-1] ** -0.5
        # A product a head: the heads of a picture cut into crops do not lie in one piece, and are not copied.
        heads = zip(keys.unbind(1), query[:, :, None].unbind(1), strict=True)
        logits = torch.stack([torch.linalg.vecdot(rows, row) for rows, row in heads], 1) * scale
        if self.output == "logits":
            return logits.mean(1)
        own = signals[f"cls_key@{self.layer}"].float()
        own = own.flatten(1)[:, None] if self.heads == "joined" else own
        first = (query * own).sum(2, keepdim=True) * scale
        logits = logits.masked_fill(~signals.mask[:, None], -torch.inf)
        return torch.cat([first, logits], 2).softmax(2)[:, :, 1:].mean(1)
