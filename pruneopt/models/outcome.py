"""What happened to one prompt, cut by cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruneopt.models.prompt import Prompt
from pruneopt.problems.selection import Selection
from pruneopt.spec.schema import Spec, StageSpec


@dataclass(frozen=True)
class Cut:
    """What one stage did: the survivors per row, and the selection behind them.

    kept: `[B',K]` columns in the unpruned prompt, -1 at padding.  lengths: real tokens per row, width:
    columns, from this layer on.  visual: prunable tokens that are left per row of `prompt.rows`.
    """

    layer: int
    stage: StageSpec
    selection: Selection
    kept: Tensor
    lengths: list[int]
    width: int
    visual: list[int]


@dataclass(frozen=True)
class Outcome:
    """A prompt and its cuts.  size: `[B',K]`, how many original tokens each one that is left stands for.
    seconds: host time per step of the selection.
    """

    spec: Spec
    prompt: Prompt
    cuts: list[Cut]
    size: Tensor
    seconds: dict[str, float]
