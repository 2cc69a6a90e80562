"""The concave quadratic bound of max-sum dispersion.

For shares that are 0 or 1, `x_i = x_i^2`, so `x^T D x / 2 + c x` may be written with any s as

    x^T (D - s I) x / 2 + (c + s / 2) x,

which is concave along `sum x = k` once s is the largest eigenvalue of D on the vectors that sum to zero.  It
is at most zero for distances of negative type such as 1 - cosine, where the shift costs nothing.
Source: Hammer and Rubin 1970, with the shift taken on the subspace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The concave function: `pairs` `[B,N,N]` is D, `linear` `[B,N]` is c, `shift` `[B]` is s."""

    pairs: Tensor
    linear: Tensor
    shift: Tensor

    def tangent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value `[B]` at shares `x` `[B,N]`, and its gradient `[B,N]`."""
        bent = (self.pairs @ x[:, :, None]).squeeze(2) - self.shift[:, None] * x
        straight = self.linear + self.shift[:, None] / 2
        return (x * (bent / 2 + straight)).sum(1), bent + straight


def quadratic_bound(pairs: Tensor, own: Tensor, *, simplex: CappedSimplex, rounds: int = 60) -> Tensor:
    """`[B]` float64: no choice is worth more.

    Forced tokens are put in first, so that the relaxation is over the others only.

    Parameters
    ----------
    pairs: `[B,N,N]` worth of a pair, symmetric with a zero diagonal and zeros at padding.
    own: `[B,N]` worth of a token.
    """
    forced, free = simplex.forced.double(), simplex.free
    pull = (pairs @ forced[:, :, None]).squeeze(2)
    fixed = (forced * (pull / 2 + own)).sum(1)
    linear = (own + pull).masked_fill(~free, 0)
    pairs = pairs.masked_fill(~(free[:, :, None] & free[:, None, :]), 0)
    unit = torch.maximum(pairs.abs().amax((1, 2)), linear.abs().amax(1)).clamp_min(1e-300)
    pairs = pairs / unit[:, None, None]
    function = Quadratic(pairs, linear / unit[:, None], top_on_zero_sums(pairs, free))
    return fixed + unit * simplex.without_forced().certify(function.tangent, rounds)


def top_on_zero_sums(matrix: Tensor, free: Tensor) -> Tensor:
    """`[B]` at least the largest eigenvalue of `matrix` `[B,N,N]` on vectors over `free` that sum to zero."""
    hot = free.double()
    mean = hot[:, :, None] * hot[:, None, :] / hot.sum(1).clamp_min(1)[:, None, None]
    centre = torch.diag_embed(hot) - mean
    size = matrix.flatten(1).norm(dim=1)
    # vectors that do not count get an eigenvalue below all others
    away = torch.eye(free.shape[1], dtype=matrix.dtype, device=matrix.device) - centre
    eigen = torch.linalg.eigvalsh(centre @ matrix @ centre - size[:, None, None] * away)
    return eigen[:, -1] + 1e-15 * free.shape[1] * size
