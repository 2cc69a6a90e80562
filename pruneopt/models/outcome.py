"""What happened to one prompt, cut by cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruneopt.models.columns import Columns
from pruneopt.models.prompt import Prompt
from pruneopt.problems.selection import Selection
from pruneopt.spec.schema import Spec, StageSpec


@dataclass(frozen=True)
class Cut:
    """What one stage did: the survivors per row, and the selection behind them.

    kept: `[B',K]` columns in the unpruned prompt, -1 at padding.  lengths: real tokens per row, width:
    columns, from this layer on.  visual: prunable tokens that are left per row of `prompt.rows`.
    evicted: layers that ran with what went and whose caches alone lost it, None where the layers from `layer`
    on ran without it.
    """

    layer: int
    stage: StageSpec
    selection: Selection
    kept: Tensor
    lengths: list[int]
    width: int
    visual: list[int]
    evicted: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        stage: StageSpec,
        selection: Selection,
        *,
        columns: Columns,
        evicted: tuple[int, ...] | None = None,
    ) -> Cut:
        """A stage that left `columns`."""
        left = list(columns.lengths), columns.width, list(columns.alive)
        return cls(stage.insertion.layer_index, stage, selection, columns.origin, *left, evicted)


@dataclass(frozen=True)
class Outcome:
    """A prompt and its cuts.  size: `[B',K]`, how many original tokens each one that is left stands for.
    seconds: host time per step of the selection.  notes: what the sites have to say.
    """

    spec: Spec
    prompt: Prompt
    cuts: list[Cut]
    size: Tensor
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
