"""The factorised bound of log-determinants of k x k principal blocks.

Write the kernel as `A A^T` and let `lambda_1 >= lambda_2 >= ...` be the eigenvalues of `A^T diag(x) A`.  Then

    f(x) = sum_{l <= i} log lambda_l + (k - i) log( sum_{l > i} lambda_l / (k - i) )

is concave in x and equals the log-determinant where x is a choice of k; i is the number of eigenvalues above
the mean of what is left for the others.  Source: Nikolov 2015; Li and Xie 2024 (`DDGFact` after Chen, Fampa
and Lee 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex


@dataclass(frozen=True, eq=False)
class Factor:
    """`kernel <= rows @ rows^T + rest`: rows `[B,N,R]`, and `own` `[B,N]`, the diagonal of `rest >= 0`.

    `rest` holds the directions of small eigenvalues, which only ever count together.
    """

    rows: Tensor
    own: Tensor
    k: Tensor

    def tangent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value `[B]` of the relaxation at shares `x` `[B,N]`, and its gradient `[B,N]`."""
        values, slope = self.tangents(x)
        return values.gather(1, self.k[:, None] - 1).squeeze(1), slope

    def tangents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the sum of the logarithms of the c smallest eigenvalues of L below, `[B,N]` for every count c
        from 1 to N, and the gradient `[B,N]`.  The entry at k is the value of the relaxation.

        The gradient is the diagonal of `A L A^T`, where L has the eigenvalues `1 / lambda_l` and one over the
        mean of the tail; `<gradient, x> = k`.  Any positive definite L bounds every choice of c
        tokens by `<gradient, 1_S> - c - sum of the logarithms of its c smallest eigenvalues`, so truncation
        and rounding cost tightness only, and the L of one count bounds all others.
        """
        weighed = self.rows.transpose(1, 2) @ (x[:, :, None] * self.rows)
        eigen, basis = torch.linalg.eigh(weighed)
        eigen, basis = eigen.flip(1).clamp_min(0), basis.flip(2)
        trace = (x * (self.rows.square().sum(2) + self.own)).sum(1)
        above, level = tail_level(eigen, trace, k=self.k)
        head = torch.arange(eigen.shape[1], device=x.device) < above
        levels = torch.where(head, torch.maximum(eigen, level), level)
        more = level.expand(-1, x.shape[1] - levels.shape[1])
        values = torch.cat([levels, more], 1).log().cumsum(1)
        slope = ((self.rows @ basis).square() / levels[:, None, :]).sum(2) + self.own / level
        return values, slope


def tail_level(eigen: Tensor, trace: Tensor, *, k: Tensor) -> tuple[Tensor, Tensor]:
    """`[B,1]` how many eigenvalues stand above the tail, and the mean `[B,1]` that the tail then has.

    `eigen` `[B,R]` falls; what `trace` `[B]` has beyond it belongs to the tail.
    """
    none = torch.zeros_like(eigen[:, :1])
    place = torch.arange(eigen.shape[1] + 1, device=eigen.device)
    used = torch.cat([none, eigen.cumsum(1)], 1)
    level = (trace[:, None] - used) / (k[:, None] - place).clamp_min(1)
    fits = (level >= torch.cat([eigen, none], 1)) | (place >= k[:, None] - 1)
    above = fits.int().argmax(1, keepdim=True)
    return above, level.gather(1, above).clamp_min(1e-300)


def factorise(kernel: Tensor, simplex: CappedSimplex, *, small: float = 0.01) -> Factor:
    """A factor of `kernel` `[B,N,N]`, raised by what the computation of its eigenvalues may have lost.

    Eigenvalues below a share of `small` of the level that the tail has at equal shares are left to it.
    """
    eigen, basis = torch.linalg.eigh(kernel)
    noise = eigen.abs().amax(1, keepdim=True) * 1e-15 * kernel.shape[1]
    eigen, basis = (eigen.clamp_min(0) + noise).flip(1), basis.flip(2)
    trace = eigen.sum(1) * simplex.k / simplex.real.sum(1)
    tail = _small(eigen, trace, simplex=simplex, small=small)
    large = int((~tail).sum(1).max())
    rows = (basis * eigen.sqrt()[:, None, :]).masked_fill(tail[:, None, :], 0)[:, :, :large]
    own = (basis.square() * eigen.masked_fill(~tail, 0)[:, None, :]).sum(2)
    return Factor(rows, own, simplex.k)


def thin_bound(rows: Tensor, rest: Tensor, *, simplex: CappedSimplex, rounds: int = 6) -> Tensor:
    """`[B]` float64: the same for the kernel `rows @ rows^T + diag(rest)`, rows `[B,N,R]`, rest `[B,N]` >= 0.

    Nothing of the size of the kernel is made.  Rounds cost O(N R^2), R the number of eigenvalues that matter.
    """
    unit = (rows.square().sum(2) + rest).amax(1).clamp_min(1e-300)
    eigen, basis = torch.linalg.eigh(rows.transpose(1, 2) @ rows / unit[:, None, None])
    eigen, basis = eigen.clamp_min(0).flip(1), basis.flip(2)
    trace = ((rest / unit[:, None]).sum(1) + eigen.sum(1)) * simplex.k / simplex.real.sum(1)
    large = min(rows.shape[1], int((~_small(eigen, trace, simplex=simplex)).sum(1).max()))
    turned = rows @ (basis / unit.sqrt()[:, None, None])
    own = turned[:, :, large:].square().sum(2) + rest / unit[:, None]
    factor, x = Factor(turned[:, :, :large], own, simplex.k), simplex.centre()
    best = torch.full_like(unit, torch.inf)
    for _ in range(rounds):
        value, slope = factor.tangent(x)
        best = torch.minimum(best, value + simplex.most(slope) - simplex.k)
        x = simplex.scaled(x * slope.square())
    return best + simplex.k * unit.log() + 1e-12 * (simplex.k + best.abs())


def _small(eigen: Tensor, trace: Tensor, *, simplex: CappedSimplex, small: float = 0.01) -> Tensor:
    """`[B,R]` bool: falling eigenvalues below a share of `small` of the level of the tail at equal shares."""
    share = (simplex.k.double() / simplex.real.sum(1))[:, None] * eigen
    return share <= small * tail_level(share, trace, k=simplex.k)[1]


def factorised_bound(kernel: Tensor, simplex: CappedSimplex, *, rounds: int = 20) -> Tensor:
    """`[B]` float64: no block of `k` tokens of `kernel` `[B,N,N]` has a larger log-determinant, in nats."""
    return factorised_bounds(kernel, simplex, rounds=rounds).gather(1, simplex.k[:, None] - 1).squeeze(1)


def factorised_bounds(kernel: Tensor, simplex: CappedSimplex, *, rounds: int = 20) -> Tensor:
    """`[B,N]` float64: the same for blocks of every size, from shares that move for the bound of `k`.

    Every round multiplies shares by a power of the gradient (Silvey, Titterington and Torsney 1978), which
    needs no step size, and certifies; the power 2 is over-relaxed.  Rounds cost O(N R^2 + R^3), R the number
    of eigenvalues that matter.  The kernel may be singular or indefinite by rounding: only positive definite
    blocks have a value.
    """
    unit = kernel.diagonal(dim1=1, dim2=2).abs().amax(1).clamp_min(1e-300)
    factor = factorise(kernel / unit[:, None, None], simplex)
    x = simplex.centre()
    best = torch.full_like(x, torch.inf)
    count = torch.arange(1, x.shape[1] + 1, device=x.device)
    for _ in range(rounds):
        values, slope = factor.tangents(x)
        best = torch.minimum(best, values + simplex.most_of_each(slope) - count)
        x = simplex.scaled(x * slope.square())
    return best + count * unit.log()[:, None] + 1e-12 * (count + best.abs())
