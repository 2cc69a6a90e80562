"""Every k-th token: which tokens a bipartite method keeps as destinations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import places

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class EveryKth(Score):
    """1 at the last token of each block of `stride` real tokens, else 0, `[B,N]` float32; no ranking.

    For `problem.protect.where`: the destinations of ToMe, AIM and SAINT (there the odd tokens).
    """

    name: ClassVar[str] = "every_kth"
    source: ClassVar[str] = "ToMe (ICLR 2023), section 3"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order", "groups"})
    stride: int = param(2, low=2, doc="one token of this many")

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        return is_destination(signals.mask, self.stride).float()


def is_destination(mask: Tensor, stride: int) -> Tensor:
    """`[B,N]` bool: the last token of each block of `stride`, padding excluded."""
    return (places(mask) % stride == stride - 1) & mask


def stride_misfit(stride: int, stage: StageSpec) -> str | None:
    """Why a part that compares tokens with every `stride`-th one does not fit a stage, or None."""
    protect = stage.problem.protect
    where = None if protect is None else protect.where
    if isinstance(where, EveryKth) and where.stride == stride:
        return None
    found = "it is not set" if where is None else f"it is {where.to_spec()}"
    return (
        f"compares with every {stride}th token, which must then stay: problem.protect.where must be "
        f"{{kind: every_kth, stride: {stride}}}, and {found}"
    )
