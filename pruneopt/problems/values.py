"""What the values of a subset problem must be: every refusal names the argument, the sample and the cure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.unstored import Unstored
from pruneopt.tensors import first_true, not_finite

if TYPE_CHECKING:
    from pruneopt.problems.rows import Rows
    from pruneopt.problems.subset import SubsetProblem

ASYMMETRY = 1e-5  # of the largest entry: what float32 products of either order may differ by


def check_values(problem: SubsetProblem, rounding: float) -> None:
    """Raise ProblemError for values that a problem of this kind cannot have.

    `rounding` is the relative rounding of the dtype that `pairwise` came in, before it was promoted.
    """
    rules = problem.rules
    _check_counts(problem)
    _check_finite("unary", problem.unary, real=problem.mask)
    if isinstance(problem.pairwise, Unstored):
        _check_rows(problem, problem.pairwise.rows)
    elif problem.pairwise is not None:
        clean = problem.pairwise
        if problem.mask is not None:
            clean = clean.masked_fill(~(problem.real[:, :, None] & problem.real[:, None, :]), 0)
        _check_finite("pairwise", clean)
        if rules.symmetric:
            _check_symmetric(clean, problem.kind, tolerance=max(ASYMMETRY, 4 * rounding))
            if rules.definite:
                _check_psd(clean, problem.kind, rounding=max(rounding, torch.finfo(torch.float32).eps))
    _check_anchors(problem)
    rules.check(problem)


def _check_counts(problem: SubsetProblem) -> None:
    batch, tokens = problem.shape
    k = problem.k
    asked = k.tolist()
    real = [tokens] * batch if problem.mask is None else problem.real.sum(1).tolist()
    for i, (count, there) in enumerate(zip(asked, real, strict=True)):
        if not 1 <= count <= there:
            raise ProblemError(f"cannot choose {count} of {there} tokens in sample {i}")
    if problem.counts is not None and list(problem.counts) != asked:
        raise ProblemError(f"counts {list(problem.counts)} are not k {asked}; leave them out or agree")
    if problem.protected is None:
        return
    padded = (problem.protected & ~problem.real).any(1)
    if padded.any():
        raise ProblemError(
            f"protected marks padding in sample {first_true(padded)}; protect real tokens only"
        )
    many = problem.protected.sum(1) > k
    if many.any():
        i = first_true(many)
        raise ProblemError(
            f"sample {i} protects {int(problem.protected[i].sum())} tokens but the budget is {int(k[i])}"
        )


def _check_finite(name: str, tensor: Tensor | None, *, real: Tensor | None = None) -> None:
    if tensor is None:
        return
    if real is not None:
        real = real.view(*real.shape, *(1,) * (tensor.dim() - real.dim()))
    bad = not_finite(tensor, real)
    if bad.any():
        raise ProblemError(
            f"{name} is not finite in sample {first_true(bad)}; look for NaN or infinity in the signals"
        )


def _check_rows(problem: SubsetProblem, rows: Rows) -> None:
    """A term by rows is what its construction says, as long as what it is computed from is finite."""
    for tensor in rows.inputs():
        _check_finite("pairwise", tensor, real=problem.real)
    rules = problem.rules
    if rules.symmetric and not rows.symmetric:
        raise ProblemError(
            f"pairwise by rows is not symmetric by construction, and {problem.kind} knows unordered pairs "
            "only. Set problem.symmetric=mean in the spec, or pass pruneopt.problems.row_sums.averaged(term)"
        )
    if rules.definite and not rows.definite:
        raise ProblemError(
            f"pairwise by rows is not positive semi-definite by construction, and {problem.kind} needs that. "
            "Use kernels tagged psd with weights of at least 0, or give the matrix, whose values can be tried"
        )


def _check_symmetric(pairwise: Tensor, kind: str, *, tolerance: float) -> None:
    off = (pairwise - pairwise.transpose(1, 2)).abs().amax((1, 2))
    largest = pairwise.abs().amax((1, 2))
    bad = off > tolerance * largest
    if bad.any():
        i = first_true(bad)
        raise ProblemError(
            f"pairwise of sample {i} is not symmetric: the two directions of a pair differ by "
            f"{float(off[i] / largest[i]):.2g} of the largest entry, and {kind} knows unordered pairs only. "
            "Set problem.symmetric=mean in the spec, or pass (P + P.transpose(1, 2)) / 2"
        )


def _check_psd(kernel: Tensor, kind: str, *, rounding: float) -> None:
    """Positive semi-definite up to N times `rounding` of the largest entry, tried by a factorisation."""
    kernel = kernel.double()
    kernel = (kernel + kernel.transpose(1, 2)) / 2
    tokens = kernel.shape[1]
    unit = kernel.abs().amax((1, 2)).clamp_min(1e-300)
    eye = torch.eye(tokens, dtype=kernel.dtype, device=kernel.device)
    raised = kernel / unit[:, None, None] + tokens * rounding * eye
    bad = torch.linalg.cholesky_ex(raised).info != 0
    if bad.any():
        i = first_true(bad)
        least = float(torch.linalg.eigvalsh(kernel[i])[0])
        raise ProblemError(
            f"pairwise of sample {i} is no kernel: its smallest eigenvalue is {least:.4g}, and {kind} needs "
            "a positive semi-definite one. Set problem.ridge="
            f"{-1.01 * least:.3g} or more in the spec, or add it to the diagonal"
        )


def _check_anchors(problem: SubsetProblem) -> None:
    anchors, strength = problem.anchors, problem.anchor_strength
    if anchors is None or anchors.shape[1] == 0:
        return
    real = problem.real[:, None, :].expand_as(anchors)
    bad = ((anchors.isnan() | (anchors == -math.inf)) & real).flatten(1).any(1)
    if bad.any():
        raise ProblemError(
            f"anchors hold NaN or -infinity in sample {first_true(bad)}; an absent anchor is a row of "
            "+infinity"
        )
    absent = anchors == math.inf
    torn = ((absent & real).any(2) & (~absent & real).any(2)).any(1)
    if torn.any():
        raise ProblemError(
            f"anchors hold a row with some +infinity in sample {first_true(torn)}; only a whole row may be "
            "+infinity, and is then absent"
        )
    if strength is not None and strength.isnan().any():
        raise ProblemError(f"anchor_strength is NaN in sample {first_true(strength.isnan().any(1))}")
