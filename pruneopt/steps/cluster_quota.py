"""Keep the best of every cluster and merge its rest into one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.signals import Signals
from pruneopt.solution import Selection
from pruneopt.steps.merging import identity_rows, merged
from pruneopt.tensors import flat_heads


@dataclass(frozen=True)
class ClusterQuota(Step):
    """Spend the budget R of the selection on clusters: K merged tokens and R - K kept as they are.

    Clusters are density peaks of encoder keys whose links stay within `reach` on the unit grid; tokens that
    no link reaches form one more cluster.  A cluster's share of the R - K is `round((size - 1) / (N - K)
    (R - K))`, at most `size - 1`, and what rounding leaves over goes to or comes from clusters in order of
    weight (the summed magnitude of their scores).  Within a cluster the highest scores stay; the rest is
    merged to `x_mid + mean(x)` at its middle member (a sum, as released; `combine=mean` for the mean alone).
    With more clusters than R, the R - 1 lightest are merged to one token each and all others to one.

    Scores are the importance of the selection, which here is minus the key norm.  Source: ViTCoP stage II.
    """

    name: ClassVar[str] = "cluster_quota"
    source: ClassVar[str] = "ViTCoP (AAAI 2026), stage II"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    centres: float = param(0.18, above=0, high=1, doc="cluster centres per token")
    cutoff: float = param(8.0, above=0, doc="distance scale of the density")
    reach: float = param(0.6, above=0, doc="longest link between tokens, the grid being the unit square")
    strict: bool = param(True, doc="links go to strictly denser tokens (paper), or also to equally dense")
    combine: str = param("add_mean", choices=("add_mean", "mean"), doc="value of a merged token")
    signal: str = param("encoder_keys", doc="what is clustered, heads side by side")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal, "xy", "grid"})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        if selection.importance is None:
            raise SpecError("step cluster_quota ranks tokens by importance; give the problem scores")
        keep, merge = torch.zeros_like(selection.keep), identity_rows(selection.keep)
        rows = signals[self.signal]
        rows = flat_heads(rows).float() if rows.dim() == 4 else rows.float()
        unit = signals["xy"].float() / signals["grid"].float()
        for b, budget in enumerate(selection.known_counts):
            real = signals.mask[b].nonzero().squeeze(1)
            label = vicinity_clusters(
                rows[b, real], unit[b, real], self.centres, self.cutoff, self.reach, self.strict
            )
            score = selection.importance[b, real].float()
            kept, groups = share_budget(label, score, budget)
            keep[b, real[kept]] = True
            for group in groups:
                place = real[group]
                middle = place[len(place) // 2]
                keep[b, middle] = True
                merge[b, middle] = 0
                merge[b, middle, place] = 1 / len(place)
                if self.combine == "add_mean":
                    merge[b, middle, middle] += 1
        return merged(selection, merge, keep=keep)


def vicinity_clusters(
    rows: Tensor, unit: Tensor, centres: float, cutoff: float, reach: float, strict: bool
) -> Tensor:
    """`[N]` cluster numbers from 0; tokens without a link to any centre share the last one."""
    distance = torch.cdist(rows, rows).fill_diagonal_(0)
    density = (-(distance / cutoff).square()).exp().sum(1)
    denser = density[None, :] > density[:, None] if strict else density[None, :] >= density[:, None]
    linked = denser & (torch.cdist(unit, unit) <= reach)
    linked.fill_diagonal_(False)
    gap = distance.masked_fill(~linked, torch.inf)
    delta, parent = gap.min(1)
    top = (density * delta).argsort(descending=True, stable=True)[: max(1, int(centres * len(rows)))]
    label = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    label[top] = torch.arange(len(top), device=rows.device)
    for _ in range(len(rows)):
        step = torch.where((label < 0) & (delta < torch.inf), label[parent], label)
        if torch.equal(step, label):
            break
        label = step
    return torch.where(label < 0, len(top), label).unique(return_inverse=True)[1]


def share_budget(label: Tensor, score: Tensor, budget: int) -> tuple[Tensor, list[Tensor]]:
    """Tokens kept as they are, and the groups that become one token each; together `budget` tokens."""
    members = [(label == c).nonzero().squeeze(1) for c in range(int(label.max()) + 1)]
    weight = torch.stack([score[m].abs().sum() for m in members])
    order = weight.argsort(stable=True).tolist()
    none = torch.zeros(0, dtype=torch.int64, device=label.device)
    if len(members) > budget:
        rest = torch.cat([members[c] for c in order[budget - 1 :]]).sort().values
        return none, [*(members[c] for c in order[: budget - 1]), rest]
    left = budget - len(members)
    spare = len(label) - len(members)
    quota = [min(round((len(m) - 1) / max(spare, 1) * left), len(m) - 1) for m in members]
    while sum(quota) != left:
        short = sum(quota) < left
        for c in order if short else reversed(order):
            if sum(quota) == left:
                break
            if short and quota[c] < len(members[c]) - 1:
                quota[c] += 1
            elif not short and quota[c] > 0:
                quota[c] -= 1
    kept, groups = [none], []
    for m, q in zip(members, quota, strict=True):
        ranked = m[score[m].argsort(descending=True, stable=True)]
        kept.append(ranked[:q])
        groups.append(ranked[q:].sort().values)
    return torch.cat(kept), groups
