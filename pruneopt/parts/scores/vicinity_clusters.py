"""Clusters of neighbouring tokens, and each cluster's share of a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pruneopt.parts import Grouping, param
from pruneopt.signals import Signals
from pruneopt.tensors import flat_heads


@dataclass(frozen=True)
class VicinityClusters(Grouping):
    """Number of the density-peak cluster that a token belongs to, `[B,N]`: the groups of a quota problem.

    Links stay within `reach` on the unit grid, and tokens that no link reaches form one more cluster.  Of a
    budget R over K clusters of N tokens, cluster c gets `1 + round((size - 1) / (N - K) (R - K))`, at most
    its size; what rounding leaves over goes to or comes from clusters in order of weight (the summed
    magnitude of their scores).  With more clusters than R, the R - 1 lightest get one token each and all
    others are joined to one group with one token.  The step `merge_groups` makes the last token of every
    share the one that stands for the rest of its cluster.  Source: ViTCoP stage II.
    """

    name: ClassVar[str] = "vicinity_clusters"
    source: ClassVar[str] = "ViTCoP (AAAI 2026), stage II"
    tags: ClassVar[frozenset[str]] = frozenset({"groups", "host", "uses_order"})
    centres: float = param(0.18, above=0, high=1, doc="cluster centres per token")
    cutoff: float = param(8.0, above=0, doc="distance scale of the density")
    reach: float = param(0.6, above=0, doc="longest link between tokens, the grid being the unit square")
    strict: bool = param(True, doc="links go to strictly denser tokens (paper), or also to equally dense")
    signal: str = param("encoder_keys", doc="what is clustered, heads side by side")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal, "xy", "grid"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        rows = signals[self.signal]
        rows = flat_heads(rows).float() if rows.dim() == 4 else rows.float()
        unit = signals["xy"].float() / signals["grid"].float()
        out = torch.zeros(rows.shape[:2], device=rows.device)
        for b, real in enumerate(signals.mask):
            out[b, real] = self._clusters(rows[b, real], unit[b, real]).float()
        return out.masked_fill(rows.isnan().flatten(1).any(1)[:, None], torch.nan)

    def _clusters(self, rows: Tensor, unit: Tensor) -> Tensor:
        """`[n]` cluster numbers from 0; tokens without a link to any centre share the last one."""
        distance = torch.cdist(rows, rows).fill_diagonal_(0)
        density = (-(distance / self.cutoff).square()).exp().sum(1)
        denser = density[None, :] > density[:, None] if self.strict else density[None, :] >= density[:, None]
        linked = denser & (torch.cdist(unit, unit) <= self.reach)
        linked.fill_diagonal_(False)
        delta, parent = distance.masked_fill(~linked, torch.inf).min(1)
        peaks = (density * delta).argsort(descending=True, stable=True)
        top = peaks[: max(1, int(self.centres * len(rows)))]
        label = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
        label[top] = torch.arange(len(top), device=rows.device)
        for _ in range(len(rows)):
            step = torch.where((label < 0) & (delta < torch.inf), label[parent], label)
            if torch.equal(step, label):
                break
            label = step
        return torch.where(label < 0, len(top), label).unique(return_inverse=True)[1]

    def shares(
        self,
        group: Int[Tensor, "B N"],
        mask: Bool[Tensor, "B N"],
        *,
        k: Int[Tensor, " B"],
        importance: Float[Tensor, "B N"],
    ) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B G"]]:
        joined, quotas = torch.zeros_like(group), []
        for b, real in enumerate(mask):
            size = group[b, real].bincount().tolist()
            weight = torch.zeros(len(size), device=group.device)
            weight = weight.scatter_add(0, group[b, real], importance[b, real].float().abs())
            number, quota = share_budget(size, weight.argsort(stable=True).tolist(), budget=int(k[b]))
            joined[b, real] = torch.tensor(number, device=group.device)[group[b, real]]
            quotas.append(torch.tensor(quota, device=group.device))
        return joined, torch.nn.utils.rnn.pad_sequence(quotas, batch_first=True)


def share_budget(size: list[int], order: list[int], *, budget: int) -> tuple[list[int], list[int]]:
    """Group number of every cluster, and the quota of every group; quotas sum to `budget`.

    `size` of the clusters; `order`: cluster numbers from the lightest to the heaviest.
    """
    clusters = len(size)
    if clusters > budget:
        number = [budget - 1] * clusters
        for group, cluster in enumerate(order[: budget - 1]):
            number[cluster] = group
        return number, [1] * budget
    left, spare = budget - clusters, sum(size) - clusters
    extra = [min(round((n - 1) / max(spare, 1) * left), n - 1) for n in size]
    while sum(extra) != left:
        short = sum(extra) < left
        for c in order if short else reversed(order):
            if sum(extra) == left:
                break
            if short and extra[c] < size[c] - 1:
                extra[c] += 1
            elif not short and extra[c] > 0:
                extra[c] -= 1
    return list(range(clusters)), [1 + e for e in extra]
