"""How much a layer turns and stretches each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Transition(Score):
    """Token transition variation summed over layers, `[B,N]` float32; higher is kept.

    Needs no attention map.  Source: TransPrune section 3.  `absolute=true` is the paper's direction term
    `1 - |cos|`; the released code uses `1 - cos`, which ranks differently where cosines are negative.
    """

    name: ClassVar[str] = "transition"
    source: ClassVar[str] = "TransPrune (CVPR 2026), token transition variation"
    layers: tuple = param((), doc="0-based decoder layers that are summed; empty: the last one that ran")
    absolute: bool = param(True, doc="1 - |cos| instead of 1 - cos")

    @property
    def needs(self) -> frozenset[str]:
        base = "transition_abs" if self.absolute else "transition"
        return frozenset({f"{base}@{layer}" for layer in self.layers} or {base})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return torch.stack([signals[name].float() for name in sorted(self.needs)]).sum(0)


def sublayer_transition(before: Tensor, after: Tensor, *, mask: Tensor, absolute: bool) -> Tensor:
    """Variation of one sublayer, `[B,L]` float32, from its normed input and its output before the residual.

    `|out| / |in|` times a softmax of `1 - cos(in, out)` over all `L` tokens of the sequence that `mask`
    `[B,L]` calls real, text included.  The release takes that softmax over the whole batch; here it is per
    sample, so that results do not depend on batch mates.  Attention and MLP parts of a layer are added.
    """
    before, after = before.float(), after.float()
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=2)
    turn = 1 - (cosine.abs() if absolute else cosine)
    weight = turn.masked_fill(~mask, -torch.inf).softmax(1).nan_to_num(0.0)
    tiny = torch.finfo(torch.float32).tiny
    return after.norm(dim=2) / before.norm(dim=2).clamp_min(tiny) * weight
