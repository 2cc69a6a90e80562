"""Let one token of every group stand for all that the group drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


@dataclass(frozen=True)
class MergeGroups(Step):
    """In every group the least important kept token and all dropped ones become one; counts stay.

    The merged token stands at the middle member of what it merges.  Its value is `x_mid + mean(x)` (a sum, as
    ViTCoP's code has it) or the mean alone.  Groups are those of the quota problem; one that keeps nothing
    is left alone.  Ties of importance give up the higher index.  Source: ViTCoP stage II.
    """

    name: ClassVar[str] = "merge_groups"
    source: ClassVar[str] = "ViTCoP (AAAI 2026), stage II"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    asks: ClassVar[frozenset[str]] = frozenset({"merge"})
    combine: str = param("add_mean", choices=("add_mean", "mean"), doc="value of a merged token")

    def misfit(self, stage: StageSpec) -> str | None:
        if stage.problem.groups is not None:
            return None
        return f"merges within the groups of a quota problem, but problem.kind is {stage.problem.kind}"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        groups = getattr(getattr(selection.solution, "problem", None), "group", None)
        if groups is None or selection.importance is None:
            raise SpecError("step merge_groups needs the groups and scores of a quota problem")
        keep, merge = selection.keep.clone(), identity_rows(selection.keep)
        for b, real in enumerate(signals.mask):
            place = real.nonzero().squeeze(1)
            score = selection.importance[b, place].float()
            ranked = place[score.argsort(descending=True, stable=True)]
            for group in groups[b, place].unique():
                members = ranked[groups[b, ranked] == group]
                kept = members[selection.keep[b, members]]
                if not len(kept):
                    continue
                rest = torch.cat([members[~selection.keep[b, members]], kept[-1:]]).sort().values
                middle = rest[len(rest) // 2]
                keep[b, rest] = False
                keep[b, middle] = True
                merge[b, middle] = 0
                merge[b, middle, rest] = 1 / len(rest)
                if self.combine == "add_mean":
                    merge[b, middle, middle] += 1
        return merged(selection, merge, keep=keep)
