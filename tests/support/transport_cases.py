"""Small transport problems and an independent log-domain Sinkhorn in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.special import logsumexp

FEASIBLE = ("emd", "exact", "lp", "sinkhorn", "proximal", "sinkhorn_newton", "greedy_rows", "north_west")
FAST_SEEDS = st.integers(0, 10_000)


def random_problem(
    seed: int, batch: int = 2, n: int = 9, m: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cost in [0,1], uneven marginals."""
    gen = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, n, m, generator=gen, dtype=torch.float64)
    a = (1.5 * torch.randn(batch, n, generator=gen, dtype=torch.float64)).softmax(1)
    b = (1.5 * torch.randn(batch, m, generator=gen, dtype=torch.float64)).softmax(1)
    return cost.to(dtype), a.to(dtype), b.to(dtype)


def reference_sinkhorn(
    cost: np.ndarray, a: np.ndarray, b: np.ndarray, eps: float, rounds: int, source_last: bool = True
) -> np.ndarray:
    """Plan `[n,m]` after plain alternating log-domain updates from zero potentials."""
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(rounds):
        for side in ("g", "f") if source_last else ("f", "g"):
            if side == "g":
                g = eps * np.log(b) - eps * logsumexp((f[:, None] - cost) / eps, axis=0)
            else:
                f = eps * np.log(a) - eps * logsumexp((g[None, :] - cost) / eps, axis=1)
    return np.exp((f[:, None] + g[None, :] - cost) / eps)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.clamp_min(1e-300).log()).sum(-1)
