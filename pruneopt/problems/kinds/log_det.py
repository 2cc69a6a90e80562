"""Log-determinants: the largest volume."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._ddgfact import factorised_bound, factorised_bounds, thin_bound
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._linx import linx_bound
from pruneopt.problems.kinds._streamed import ROUNDINGS, chosen_part, rounded
from pruneopt.problems.kinds._swaps import Swaps, chosen_first
from pruneopt.problems.kinds._terms import symmetric_pairwise, unary_or
from pruneopt.problems.unstored import rows_of

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem, Terms


class LogDet(Kind):
    """Log-determinant of `diag(q) L diag(q)` restricted to the choice, `L = pairwise`, `q = unary` or ones.

    -inf for a choice that is singular to the dtype of the kernel (see `block_log_det`).
    """

    name: ClassVar[str] = "log_det"
    pairs: ClassVar[str] = "kernels"
    symmetric: ClassVar[bool] = True
    definite: ClassVar[bool] = True
    unit: ClassVar[str] = "nats"
    scaled: ClassVar[frozenset[str]] = frozenset({"pairwise"})
    greedy = {"kind": "greedy_log_det"}
    search = {"kind": "local_search"}

    def kernel(self, problem: SubsetProblem) -> Tensor:
        quality = unary_or(problem, 1.0)
        return quality[:, :, None] * symmetric_pairwise(problem) * quality[:, None, :]

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        order, inside = chosen_first(keep, max(1, int(keep.sum(1).max())))
        rows = order[:, :, None].expand(-1, -1, keep.shape[1])
        block = self.kernel(problem).gather(1, rows)
        block = block.gather(2, order[:, None, :].expand(-1, order.shape[1], -1))
        eye = torch.eye(order.shape[1], dtype=block.dtype, device=block.device)
        block = torch.where(inside[:, :, None] & inside[:, None, :], block, eye)
        return block_log_det(block, singular_below(problem, keep.sum(1)))

    def magnitude(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """A nat per token: the value changes by a constant when its kernel is scaled."""
        return keep.sum(1).double()

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The smallest of the Hadamard bound (k largest diagonals), the factorised one and linx.

        See `_ddgfact` and `_linx`.  linx is asked where at least half of the tokens are kept, as it is seldom
        the better one elsewhere.  None assumes more of the kernel than that positive definite blocks alone
        have a value.
        """
        kernel, simplex = self.kernel(problem), CappedSimplex.of(problem)
        logs = kernel.diagonal(dim1=1, dim2=2).clamp_min(0).log().masked_fill(~problem.real, -math.inf)
        bound = torch.minimum(log_best_k(logs, problem.k), factorised_bound(kernel, simplex))
        many = (2 * problem.k >= problem.real.sum(1)).nonzero().squeeze(1)
        if len(many):
            bound[many] = torch.minimum(bound[many], linx_bound(kernel[many], simplex.at(many)))
        return bound

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return self.value(*chosen_part(problem, keep))

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The Hadamard bound, and the factorised one where the kernel is a product of features."""
        term, simplex, quality = rows_of(problem.pairwise), CappedSimplex.of(problem), unary_or(problem, 1.0)
        own = (term.own().double() * quality.square()).masked_fill(~problem.real, 0)
        logs = own.clamp_min(0).log().masked_fill(~problem.real, -math.inf)
        bound = rounded(log_best_k(logs, problem.k), problem.k.double(), like=term.like)
        if (found := term.factor()) is None:
            return bound
        rows, rest = found
        # what the rounding of entries may add to any block
        noise = problem.k[:, None] * ROUNDINGS * torch.finfo(term.like.dtype).eps * own.amax(1, keepdim=True)
        rest = (rest * quality.square() + noise).masked_fill(~problem.real, 0)
        return torch.minimum(bound, thin_bound(rows * quality[:, :, None], rest, simplex=simplex))

    def bounds(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The smaller of the Hadamard bound and the factorised one, which is made for the count it has."""
        kernel, simplex = self.kernel(problem), CappedSimplex.of(problem)
        logs = kernel.diagonal(dim1=1, dim2=2).clamp_min(0).log().masked_fill(~problem.real, -math.inf)
        hadamard = logs.sort(dim=1, descending=True).values.cumsum(1)
        return torch.minimum(hadamard, factorised_bounds(kernel, simplex))

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        """Twice the logarithms of the pivots of a Cholesky factor; -inf once a choice is singular."""
        assert problem.pairwise is not None
        rows, there = order.clamp_min(0), order >= 0
        quality = unary_or(problem, 1.0).gather(1, rows)
        block = rows_of(problem.pairwise).block(rows, rows).double()
        block = quality[:, :, None] * (block + block.transpose(1, 2)) / 2 * quality[:, None, :]
        eye = torch.eye(rows.shape[1], dtype=block.dtype, device=block.device)
        root, fails = torch.linalg.cholesky_ex(torch.where(there[:, :, None] & there[:, None, :], block, eye))
        singular = torch.arange(1, rows.shape[1] + 1, device=rows.device) >= fails[:, None]
        gains = 2 * root.diagonal(dim1=1, dim2=2).log()
        gains = gains.masked_fill(singular & (fails > 0)[:, None], -math.inf)
        return gains.masked_fill(~there, math.nan)

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        return _Inverse(problem, keep)

    def draw(self, unit: Tensor, quality: Tensor, *, k: int) -> Terms:
        """With scores as quality."""
        return {**super().draw(unit, quality, k=k), "unary": quality}


class _Inverse(Swaps):
    """The inverse of the block of the chosen, changed by two matrices of rank one: O(KN) a swap.

    With `A = L_S^-1`, `M = A L_S,:` and `r_n = L_nn - L_nS A L_Sn`, what n adds to a determinant:

        det(S - i + j) / det(S) = A_ii r_j + M_ij^2.

    Rounding adds up, so every `FRESH` swaps all of it is computed anew.
    """

    FRESH = 32

    def __init__(self, problem: SubsetProblem, keep: Tensor) -> None:
        super().__init__(problem, keep)
        self.kernel = problem.rules.kernel(problem)
        self.age = torch.zeros_like(problem.k)
        wide = self.slots[:, :, None].expand(-1, -1, self.kernel.shape[2])
        self.rows = self.kernel.gather(1, wide).masked_fill_(~self.filled[:, :, None], 0)
        self.inverse, self.mixed, self.left = self._fresh(torch.arange(len(keep), device=keep.device))

    def _fresh(self, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, slots, filled = self.rows[sample], self.slots[sample], self.filled[sample]
        block = rows.gather(2, slots[:, None, :].expand(-1, slots.shape[1], -1))
        block = block.masked_fill(~filled[:, None, :], 0) + torch.diag_embed((~filled).to(block.dtype))
        inverse = torch.linalg.inv_ex(block).inverse
        mixed = inverse @ rows
        return inverse, mixed, self.kernel[sample].diagonal(dim1=1, dim2=2) - (rows * mixed).sum(1)

    def gains(self) -> Tensor:
        alone = self.inverse.diagonal(dim1=1, dim2=2)[:, :, None] * self.left[:, None, :]
        return torch.addcmul(alone, self.mixed, self.mixed).clamp_min_(0).log_()

    def update(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        each = torch.arange(len(sample), device=sample.device)
        inverse, mixed = self.inverse[sample], self.mixed[sample]
        # the token of the slot goes
        column, gone, weight = inverse[each, :, slot], mixed[each, slot], inverse[each, slot, slot][:, None]
        left = self.left[sample] + gone.square() / weight
        inverse -= (column / weight)[:, :, None] * column[:, None, :]
        mixed -= (column / weight)[:, :, None] * gone[:, None, :]
        # another one comes
        rows = self.rows[sample]
        row = self.kernel[sample, into]
        parts = mixed[each, :, into]
        parts[each, slot] = 0
        rest = row - (parts[:, None, :] @ rows).squeeze(1)
        weight = rest[each, into][:, None]
        parts[each, slot] = -1
        self.inverse[sample] = inverse + (parts / weight)[:, :, None] * parts[:, None, :]
        self.mixed[sample] = mixed - (parts / weight)[:, :, None] * rest[:, None, :]
        self.left[sample] = left - rest.square() / weight
        self.rows[sample, slot] = row
        self.age[sample] += 1

    def swap(self, sample: Tensor, slot: Tensor, *, into: Tensor) -> None:
        super().swap(sample, slot, into=into)
        old = sample[self.age[sample] % self.FRESH == 0]
        if len(old):
            self.inverse[old], self.mixed[old], self.left[old] = self._fresh(old)


def log_best_k(logs: Tensor, k: Tensor) -> Tensor:
    """`[B]` sum of the `k[b]` largest of `[B,N]`."""
    top = logs.sort(dim=1, descending=True).values
    place = torch.arange(top.shape[1], device=top.device)
    return top.masked_fill(place >= k[:, None], 0).sum(1)


def singular_below(problem: SubsetProblem, size: Tensor) -> Tensor:
    """`[B]` float64: a choice of `size` `[B]` tokens is singular when an eigenvalue is no larger than this.

    Size times the rounding of the kernel's dtype, of the block scaled to a unit diagonal: what the entries
    themselves do not resolve.  A float32 Gram matrix of low rank has such eigenvalues on both sides of zero.
    """
    assert problem.pairwise is not None
    return size.double() * torch.finfo(problem.pairwise.dtype).eps


def block_log_det(block: Tensor, singular: Tensor) -> Tensor:
    """`[B]` log-determinants of symmetric blocks `[B,K,K]` float64.

    -inf unless every eigenvalue of the block, scaled to a unit diagonal, is above `singular` `[B]`.  So a
    finite value belongs to a positive definite block, and interlacing and Hadamard bound it whatever the
    rest of the kernel is.
    """
    scale = block.diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()
    unit = block / (scale[:, :, None] * scale[:, None, :])
    least = torch.diag_embed(singular[:, None].expand(-1, block.shape[1]))
    definite = torch.linalg.cholesky_ex(unit - least).info == 0
    log = torch.linalg.slogdet(unit).logabsdet
    return torch.where(definite | log.isnan(), log + 2 * scale.log().sum(1), -math.inf)
