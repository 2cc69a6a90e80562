"""The linx bound of log-determinants of k x k principal blocks.

For a scale g > 0 the function

    f(x) = ( log det( g C diag(x) C + I - diag(x) ) - k log g ) / 2

is concave in x and equals the log-determinant of the block of C where x is a choice of k; it is convex in
log g, so the best scale is where its derivative is zero.  It is tight for well-conditioned kernels and large
k, where the factorised bound is not.  Source: Anstreicher 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex

INSIDE = 1e-3  # shares keep this part of the centre, away from where the matrix is singular


def linx_tangent(
    kernel: Tensor, x: Tensor, *, scale: Tensor, k: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value `[B]`, gradient `[B,N]`, derivative `[B]` in log `scale` `[B]`, and rounding `[B]` of the value.

    A matrix without a Cholesky factor gives NaN.
    """
    mixed = scale[:, None, None] * (kernel @ (x[:, :, None] * kernel)) + torch.diag_embed(1 - x)
    root, failed = torch.linalg.cholesky_ex(mixed)
    root = torch.where((failed != 0)[:, None, None], torch.nan, root)
    log = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(kernel)
    inverse = torch.cholesky_solve(eye, root)
    inner = scale[:, None] * (kernel * (inverse @ kernel)).sum(1)
    slope = (inner - inverse.diagonal(dim1=1, dim2=2)) / 2
    turn = ((inner * x).sum(1) - k) / 2
    # a relative error in the entries moves log det by at most the product of the two norms
    size = mixed.flatten(1).norm(dim=1) * inverse.flatten(1).norm(dim=1)
    return (log - k * scale.log()) / 2, slope, turn, 1e-15 * x.shape[1] * size


def linx_bound(kernel: Tensor, simplex: CappedSimplex, *, rounds: int = 20) -> Tensor:
    """`[B]` float64: no block of `k` tokens of `kernel` `[B,N,N]` has a larger log-determinant, in nats.

    Projected steps in x, each followed by a step in the scale; the smallest bound on the way counts.  +inf
    where rounding leaves none.  Rounds cost O(N^3).
    """
    unit = kernel.diagonal(dim1=1, dim2=2).abs().amax(1).clamp_min(1e-300)
    kernel = kernel / unit[:, None, None]
    k, middle = simplex.k.double(), simplex.centre()
    n = simplex.real.sum(1).double()
    log_scale = torch.zeros_like(k)
    x, best = middle, torch.full_like(k, torch.inf)
    step = torch.ones_like(k)
    for _ in range(rounds):
        value, slope, turn, rounding = linx_tangent(kernel, x, scale=log_scale.exp(), k=k)
        bound = simplex.bound(x, value, slope=slope) + rounding
        step = torch.where(bound < best, step * 1.5, step / 2)
        best = torch.fmin(best, bound)
        # were all eigenvalues alike, this would be the scale at once
        filled = (2 * turn + k) / n
        log_scale = log_scale + (torch.logit(k / n, 1e-3) - torch.logit(filled, 1e-3)).nan_to_num(0.0)
        x = (1 - INSIDE) * simplex.nearest(x + step[:, None] * slope.nan_to_num(0.0)) + INSIDE * middle
    return best + k * unit.log() + 1e-12 * (k + best.abs())
