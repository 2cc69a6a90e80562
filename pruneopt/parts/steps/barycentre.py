"""Kept tokens become the barycentres of what a transport plan moves to, or from, them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import param
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.parts.steps.merge_by_plan import MergeByPlan
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Barycentre(MergeByPlan):
    """A kept token t becomes the mean of all tokens i with the masses of the plan as weights.

    `direction`: `received`, weights `P_it`, what the plan sends to t; or `sent`, weights `P_ti`, the targets
    that t serves: the barycentric projection, and after `k_sources` the centre of a cluster.  Masses are
    multiplied by `size` where `carry` reads the sizes of earlier merges.  The new size is the mass times the
    number of tokens; its position is that of t.  A token without mass stays what it is, with size 0.

    Source: Ferradans, Papadakis, Peyre, Aujol 2014, equation 15.
    """

    name: ClassVar[str] = "barycentre"
    direction: str = param("received", choices=("received", "sent"), doc="side of the plan that t is on")

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep, plan = selection.keep, self._plan(selection).float()
        weight = plan.transpose(1, 2) if self.direction == "received" else plan
        weight = weight * signals.mask[:, None, :] * keep[:, :, None]
        if self.carry:
            weight = weight * signals["size"].float()[:, None, :]
        mass = weight.sum(2)
        mean = weight / mass[:, :, None].clamp_min(torch.finfo(weight.dtype).tiny)
        merge = torch.where((mass > 0)[:, :, None], mean, identity_rows(keep))
        return merged(selection, merge, size=mass * signals.mask.sum(1, keepdim=True))
