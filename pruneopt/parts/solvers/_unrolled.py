"""Sinkhorn rounds that autograd can follow.

The fast rounds of `scaling` write in place and go through NumPy.  Where a gradient is asked for, they are run
first and say how many rounds every problem took; here the same rounds are repeated in the log domain, so the
derivative is exact after any number of them.  A round is recomputed in backward rather than stored, so memory
stays O(NM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class Stage:
    """`rounds` (most of the batch) at one epsilon `[B]`; problem b takes `taken[b]` of them."""

    eps: Tensor
    rounds: int
    taken: Tensor


def repeat(problem: TransportProblem, start: Tensor, *, stages: list[Stage]) -> tuple[Tensor, Tensor, Tensor]:
    """Potentials `f [B,N]`, `g [B,M]` and plan after the rounds of all stages, columns first and rows last.

    `start [B,N]`: source potential to begin from.  The marginals enter as weights, never as logarithms, so
    that the derivative exists at an atom without mass, too.
    """
    a, b = problem.a.double(), problem.b.double()
    cost = problem.cost.double()
    potential = start
    for stage in stages:
        eps, weight = stage.eps, (a > 0).double()
        h, k = potential.masked_fill(a == 0, 0), torch.zeros_like(b)
        for i in range(stage.rounds):
            new_h, new_k = checkpoint(
                _round, cost, h, weight, b, eps, use_reentrant=False, preserve_rng_state=False
            )
            on = (i < stage.taken)[:, None]
            h, k, weight = torch.where(on, new_h, h), torch.where(on, new_k, k), torch.where(on, a, weight)
        potential = h + eps[:, None] * _log(weight)
    g = k + eps[:, None] * _log(b)
    exponent = (h[:, :, None] + k[:, None, :] - cost) / eps[:, None, None]
    mass = weight[:, :, None] * b[:, None, :]  # the exponent is at most -log of it, and free where it is zero
    plan = mass * torch.where(mass == 0, exponent.clamp_max(600), exponent).exp()
    return potential, g, plan.to(problem.cost.dtype)


def _round(  # noqa: PLR0917 - checkpoint gives them by position
    cost: Tensor, h: Tensor, weight: Tensor, b: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    k = _soft(cost - h[:, :, None], weight[:, :, None], eps=eps, over=1)
    return _soft(cost - k[:, None, :], b[:, None, :], eps=eps, over=2), k


def _soft(reduced: Tensor, weight: Tensor, *, eps: Tensor, over: int) -> Tensor:
    """`-eps log sum weight exp(-reduced / eps)` over an axis; atoms without weight add nothing."""
    z = -reduced / eps[:, None, None]
    top = z.detach().masked_fill(weight == 0, -torch.inf).amax(over, keepdim=True)
    total = (weight * (z - top).clamp_max(600).exp()).sum(over)
    return -eps[:, None] * (total.log() + top.squeeze(over))


def _log(mass: Tensor) -> Tensor:
    """Logarithm with minus infinity, and no gradient, at zero."""
    return mass.masked_fill(mass == 0, 1).log().masked_fill(mass == 0, -torch.inf)
