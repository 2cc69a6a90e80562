"""Recycle the better part of the dropped tokens into a few cluster tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.errors import SpecError
from pruneopt.parts import Step, param
from pruneopt.parts.steps._merging import identity_rows, merged
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class RecycleClusters(Step):
    """Density-peak clusters of the best dropped tokens, one token each, emitted after the kept ones.

    The pool are the `int(share D) + 1` dropped tokens (of D) with the largest importance; it gives
    `int(pool / per_cluster) + 1` clusters.  Density is `exp(-mean of the C smallest squared distances)`,
    `C` the number of clusters, plus noise that breaks ties; a centre scores density times the distance to
    the nearest denser token.  Others join the centre nearest by `assign` (`cosine` in the paper, `l2` in the
    code), and a cluster becomes the `sum` (paper) or `mean` (code) of its members, carried by its centre.

    The code draws its noise afresh on every call; here it comes from `seed` and the place in the pool.
    """

    name: ClassVar[str] = "recycle_clusters"
    source: ClassVar[str] = "SparseVLM (ICML 2025), section 3.3"
    asks: ClassVar[frozenset[str]] = frozenset({"merge", "reordering"})
    share: float = param(0.3, above=0, high=1, doc="share of the dropped tokens that is recycled")
    per_cluster: int = param(10, low=1, doc="pooled tokens per cluster")
    assign: str = param("cosine", choices=("cosine", "l2"), doc="how tokens choose a centre")
    combine: str = param("sum", choices=("sum", "mean"), doc="value of a cluster token")
    noise: float = param(1e-6, low=0, doc="size of the tie-breaking noise on the density")
    seed: int = param(0, low=0, doc="seed of that noise")
    signal: str = param("features", doc="what is clustered")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def sizes(self, dropped: int) -> tuple[int, int]:
        """Pool size and number of clusters when `dropped` tokens were dropped."""
        if dropped <= 0:
            return 0, 0
        pool = min(int(self.share * dropped) + 1, dropped)
        return pool, min(int(pool / self.per_cluster) + 1, pool)

    def count(self, kept: int, tokens: int) -> int:
        return kept + self.sizes(tokens - kept)[1]

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        if selection.importance is None:
            raise SpecError("step recycle_clusters pools by importance; give the problem scores")
        keep, real = selection.keep, signals.mask
        dropped = real & ~keep
        score = selection.importance.float().masked_fill(~dropped, -torch.inf)
        sizes = [self.sizes(n) for n in dropped.sum(1).tolist()]
        most = max(1, max(pool for pool, _ in sizes))
        pool = score.argsort(dim=1, descending=True, stable=True)[:, :most]
        number = torch.tensor(sizes, device=keep.device)
        rows = signals[self.signal].float()
        rows = rows.gather(1, pool[:, :, None].expand(-1, -1, rows.shape[2]))
        valid = torch.arange(most, device=keep.device) < number[:, :1]
        noise = density_noise(self.seed, most).to(rows)
        order, home = density_peaks(
            rows, valid, clusters=number[:, 1], noise=self.noise * noise, cosine=self.assign == "cosine"
        )
        return self._emit(selection, pool, valid=valid, order=order, home=home, clusters=number[:, 1])

    def _emit(
        self,
        selection: Selection,
        pool: Tensor,
        *,
        valid: Tensor,
        order: Tensor,
        home: Tensor,
        clusters: Tensor,
    ) -> Selection:
        batch, most = pool.shape
        slot = torch.arange(most, device=pool.device)
        member = (home[:, None, :] == order[:, :, None]) & valid[:, None, :]
        if self.combine == "mean":
            weights = member / (member.sum(2, keepdim=True) + 1e-6)
        else:
            weights = member.float()
        live = slot < clusters[:, None]
        carrier = pool.gather(1, order)
        merge = identity_rows(selection.keep)
        number = torch.arange(batch, device=pool.device)[:, None]
        rows = torch.zeros(batch, most, selection.keep.shape[1], device=pool.device)
        rows.scatter_(2, pool[:, None, :].expand(-1, most, -1), weights)
        merge[number, carrier] = torch.where(live[:, :, None], rows, merge[number, carrier])
        rank = torch.zeros_like(selection.keep, dtype=torch.float32)
        rank.scatter_(1, carrier, torch.where(live, 1.0 + slot, 0.0))
        added = torch.zeros_like(selection.keep).scatter(1, carrier, live)
        return merged(selection, merge, keep=selection.keep | added, rank=rank)


def density_noise(seed: int, count: int) -> Tensor:
    """`[count]` uniform numbers in [0,1), the same on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def density_peaks(
    rows: Tensor, valid: Tensor, *, clusters: Tensor, noise: Tensor, cosine: bool
) -> tuple[Tensor, Tensor]:
    """Centres and assignment of density-peak clustering.

    Parameters
    ----------
    rows
        `[B,P,D]` tokens.
    valid
        `[B,P]` bool, True at real ones.
    clusters
        `[B]` int64, how many centres; also how many neighbours count for the density.
    noise
        `[P]` added to the density.
    cosine
        Join the centre with the largest cosine instead of the nearest one.

    Returns
    -------
    tuple of Tensor
        Places of all tokens by falling centre score, `[B,P]` (the first `clusters[b]` are centres), and the
        place of the centre that every token belongs to, `[B,P]`.
    """
    # Distances per root of the width, as the published code scales them; padding is infinitely far.
    inner = torch.bmm(rows, rows.transpose(1, 2))
    square = inner.diagonal(dim1=1, dim2=2)
    distance = (square[:, :, None] + square[:, None, :] - 2 * inner).clamp_min(0)
    distance.diagonal(dim1=1, dim2=2).zero_()
    distance = (distance / rows.shape[2]).sqrt()
    pair = valid[:, :, None] & valid[:, None, :]
    distance = distance.masked_fill(~pair, torch.inf)
    # Density: how near the nearest tokens are, each token to itself included.
    near = distance.sort(dim=2).values.square()
    slot = torch.arange(rows.shape[1], device=rows.device)
    counted = (slot < clusters[:, None])[:, None, :]
    mean = near.masked_fill(~counted, 0).sum(2) / clusters.clamp_min(1)[:, None]
    density = (-mean).exp() + noise
    # Gap: how far the nearest denser token is; the densest gets the largest distance there is.
    denser = (density[:, None, :] > density[:, :, None]) & pair
    far = distance.masked_fill(~pair, 0).flatten(1).amax(1)[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(2)
    gap = torch.where(gap == torch.inf, far, gap)
    # Centres are dense and far from anything denser; everybody else joins one of them.
    score = (density * gap).masked_fill(~valid, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    live = slot < clusters[:, None]
    if cosine:
        length = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
        apart = -inner / (length[:, :, None] * length[:, None, :])
    else:
        apart = distance
    apart = apart.gather(2, order[:, None, :].expand_as(apart)).masked_fill(~live[:, None, :], torch.inf)
    home = order.gather(1, apart.argmin(2))
    return order, torch.where(torch.zeros_like(live).scatter(1, order, live), slot.expand_as(home), home)
