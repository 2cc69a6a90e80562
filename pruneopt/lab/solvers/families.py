"""Families of transport problems, from the easy to the nasty.

`make` returns a `Case`; `case.build()` computes the cost, so that its time can be counted with the solver's.
All tensors are float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pruneopt.errors import InputError, nearest
from pruneopt.lab.solvers import embedded
from pruneopt.lab.solvers.case import Case, from_tokens, grid, trivial_ranks


def clustered(n: int, batch: int, *, gen: torch.Generator) -> Tensor:
    """Hidden states `[B,N,64]`: six clusters that hang together on the grid, two percent loud tokens."""
    xy, size = grid(n)
    seeds = torch.rand(batch, 6, 2, generator=gen) * size[0]
    label = torch.cdist(xy.expand(batch, -1, -1), seeds).argmin(2)
    centres = torch.randn(batch, 6, 64, generator=gen)
    source = centres.gather(1, label[:, :, None].expand(-1, -1, 64))
    source = source + 0.4 * torch.randn(batch, n, 64, generator=gen)
    loud = torch.rand(batch, n, 1, generator=gen) < 0.02
    return source * torch.where(loud, 3.0, 1.0) * (0.7 + 0.6 * torch.rand(batch, n, 1, generator=gen))


def _topv(n: int, batch: int, *, gen: torch.Generator) -> Case:
    """Clustered tokens; the target is the normalised source plus what attention mixed in."""
    xy, size = grid(n)
    source = clustered(n, batch, gen=gen)
    mixed = source + 0.3 * source.roll(1, 1) + 0.3 * torch.randn(batch, n, 64, generator=gen)
    target = mixed / mixed.square().mean(2, keepdim=True).sqrt()
    return from_tokens("topv", source, target=target, xy=xy, size=size)


def _cloud(dim: int) -> Callable[..., Case]:
    def make_cloud(n: int, batch: int, *, gen: torch.Generator) -> Case:
        x = torch.randn(batch, n, dim, generator=gen)
        y = torch.randn(batch, n, dim, generator=gen) + 0.5
        a, b = (_weights(batch, n, gen=gen) for _ in range(2))
        return Case(
            f"cloud{dim}", lambda: torch.cdist(x, y).square(), a, b, trivial_ranks(x.norm(dim=2), grid(n)[0])
        )

    return make_cloud


def _grid(n: int, batch: int, *, gen: torch.Generator) -> Case:
    xy, _ = grid(n)
    a, b = (_weights(batch, n, gen=gen) for _ in range(2))
    return Case(
        "grid", lambda: torch.cdist(xy, xy).expand(batch, n, n).contiguous(), a, b, trivial_ranks(a, xy)
    )


def _permuted(n: int, batch: int, *, gen: torch.Generator) -> Case:
    """Zero along a random permutation, at least a half elsewhere: the optimum is known to be zero."""
    cost = 0.5 + 0.5 * torch.rand(batch, n, n, generator=gen)
    for c in cost:
        c[torch.arange(n), torch.randperm(n, generator=gen)] = 0
    flat = torch.full((batch, n), 1 / n)
    return Case("permuted", cost.clone, flat, flat, trivial_ranks(flat, grid(n)[0]))


def _low_rank(n: int, batch: int, *, gen: torch.Generator) -> Case:
    u, v = (torch.rand(batch, n, 4, generator=gen) for _ in range(2))
    a, b = (_weights(batch, n, gen=gen) for _ in range(2))
    return Case("low_rank", lambda: u @ v.transpose(1, 2), a, b, trivial_ranks(u.norm(dim=2), grid(n)[0]))


def _near_ties(n: int, batch: int, *, gen: torch.Generator) -> Case:
    """Costs of one with differences of 1e-4, a tenth of them exact ties."""
    noise = torch.rand(batch, n, n, generator=gen)
    noise = torch.where(torch.rand(batch, n, n, generator=gen) < 0.1, 0.5, noise)
    a, b = (_weights(batch, n, gen=gen) for _ in range(2))
    return Case("near_ties", lambda: 1 + 1e-4 * noise, a, b, trivial_ranks(a, grid(n)[0]))


def _weights(batch: int, n: int, *, gen: torch.Generator) -> Tensor:
    raw = 0.2 + torch.rand(batch, n, generator=gen).double()
    return (raw / raw.sum(1, keepdim=True)).float()


def _embedded(n: int, batch: int, *, gen: torch.Generator) -> Case:
    return embedded.tokens(n, batch)


FAMILIES: dict[str, Callable[..., Case]] = {
    "topv": _topv,
    "embedded": _embedded,
    "cloud2": _cloud(2),
    "cloud64": _cloud(64),
    "grid": _grid,
    "permuted": _permuted,
    "low_rank": _low_rank,
    "near_ties": _near_ties,
}


def make(family: str, tokens: int, *, batch: int, seed: int = 0) -> Case:
    """One case. Raises InputError for an unknown family, or one that does not exist at this size."""
    if family not in FAMILIES:
        raise InputError(f"unknown cost family {family!r}{nearest(family, FAMILIES)}")
    gen = torch.Generator().manual_seed(seed * 1_000_003 + tokens * 1009 + batch)
    return FAMILIES[family](tokens, batch, gen=gen)
