"""The Lagrangian bound of facility location.

Serving target n by token s is worth `v_ns`; every target is served once, by a chosen token.  Prices `u_n` of
any sign for being served bound every choice S of k tokens:

    sum_n max_{s in S} v_ns  <=  sum_n u_n + the k largest of sum_n max(v_ns - u_n, 0).

At the worth that a choice gives every target this is the bound of Leskovec et al. 2007 around it; from there
the prices move along a subgradient.  Source: Cornuejols, Fisher and Nemhauser 1977; steps of Polyak 1969.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.problems.kinds._capped_simplex import CappedSimplex

PATIENCE = 5  # rounds without gain after which steps are halved


def serving_bound(worth: Tensor, first: Tensor, *, simplex: CappedSimplex, rounds: int = 100) -> Tensor:
    """`[B]` float64: no choice of `k` tokens serves all for more; parameters as below."""
    bounds = serving_bounds(worth, first, simplex=simplex, rounds=rounds)
    return bounds.gather(1, simplex.k[:, None] - 1).squeeze(1)


def serving_bounds(worth: Tensor, first: Tensor, *, simplex: CappedSimplex, rounds: int = 100) -> Tensor:
    """`[B,N]` float64: the same for every count of tokens, from prices that move for the bound of `k`.

    Steps aim at the best value of the choices that come up on the way.

    Parameters
    ----------
    worth: `[B,R,N]` what serving target n by token s is worth; zero where n is absent.
    first: `[B,R]` first prices, such as what a good choice serves the targets for.
    """
    price, best = first, torch.full_like(first[:, 0], torch.inf)
    every = torch.full_like(worth[:, 0], torch.inf)
    aim, length, waited = -best, torch.ones_like(best), torch.zeros_like(best)
    there = (worth != 0).any(2)
    for _ in range(rounds):
        gains = (worth - price[:, :, None]).clamp_min(0)
        choice = simplex.choice(gains.sum(1))
        bounds = price.sum(1)[:, None] + simplex.most_of_each(gains.sum(1))
        every, bound = torch.minimum(every, bounds), bounds.gather(1, simplex.k[:, None] - 1).squeeze(1)
        aim = torch.maximum(aim, worth.masked_fill(~choice[:, None, :], -torch.inf).amax(2).sum(1))
        won = bound < best
        best, waited = torch.where(won, bound, best), torch.where(won, 0, waited + 1)
        length = torch.where(waited >= PATIENCE, length / 2, length)
        waited = torch.where(waited >= PATIENCE, 0, waited)
        times = ((gains > 0) & choice[:, None, :]).sum(2)
        slope = (1.0 - times.double()) * there
        step = length * (bound - aim) / slope.square().sum(1).clamp_min(1)
        price = price - step[:, None] * slope
    return every + 1e-14 * worth.shape[1] * worth.abs().amax(2).sum(1)[:, None]
