"""Merge dropped tokens into kept ones as a transport plan sends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.scores.transport import Transport
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import TransportSolution
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec

CURE = "set problem.kind=transport, or give the problem a score {kind: transport, cost: {...}}"


@dataclass(frozen=True)
class MergeByPlan(Step):
    """A dropped token is shared out over the kept ones in proportion to the mass that the plan sends them.

    A kept token j becomes the mean of itself (weight 1) and of the dropped tokens i (weight `P_ij` over the
    sum of `P_i` at kept tokens); weights are multiplied by `size` where `carry` reads the sizes of earlier
    merges, and the new sizes are their sums.  A token that sends kept ones nothing is dropped as it is.

    The plan is that of the only transport problem solved on the way; `of` names one of several by its key,
    such as `problem.scores.LABEL`.  Its targets must be the tokens.
    """

    name: ClassVar[str] = "merge_by_plan"
    asks: ClassVar[frozenset[str]] = frozenset({"merge"})
    of: str = param("", doc="key of the transport problem; empty where there is one only")
    carry: bool = param(False, doc="read `size`, the result of earlier merges")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"size"} if self.carry else set())

    def misfit(self, stage: StageSpec) -> str | None:
        known = [key for key, part in stage.keyed.items() if isinstance(part, Transport)]
        if self.of in known or (not self.of and len(known) == 1):
            return None
        if not known:
            return f"reads a transport plan, and no transport problem is solved in this stage; {CURE}"
        return f"reads the plan of one transport problem; set `of` to one of {', '.join(known)}"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep, plan = selection.keep, self._plan(selection)
        sent = plan.float() * (~keep & signals.mask)[:, :, None] * keep[:, None, :]
        share = sent / sent.sum(2, keepdim=True).clamp_min(torch.finfo(sent.dtype).tiny)
        size = signals["size"].float() if self.carry else torch.ones_like(keep, dtype=torch.float32)
        weight = (identity_rows(keep) + share.transpose(1, 2)) * size[:, None, :]
        total = weight.sum(2)
        merge = weight / total[:, :, None].clamp_min(torch.finfo(weight.dtype).tiny)
        return merged(selection, merge, size=total)

    def _plan(self, selection: Selection) -> Tensor:
        plans = {k: s.plan for k, s in selection.evidence.items() if isinstance(s, TransportSolution)}
        if self.of:
            plans = {key: plan for key, plan in plans.items() if key == self.of}
        if len(plans) != 1:
            raise SpecError(f"step merge_by_plan reads one plan and found {len(plans)}; {CURE}")
        (plan,) = plans.values()
        if plan.shape[2] != selection.keep.shape[1]:
            raise SpecError(
                f"step merge_by_plan: the plan reaches {plan.shape[2]} external points, not the tokens; give "
                "a transport score whose cost terms are of pairs of tokens"
            )
        return plan
