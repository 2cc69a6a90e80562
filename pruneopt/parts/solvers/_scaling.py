"""Sinkhorn rounds at the speed of matrix-vector products, with the robustness of the log domain.

Potentials are absorbed into the kernel, `K_ij = exp((f_i + g_j - C_ij) / eps)`, and a round is two products
with `K`.  A run of rounds is accepted only if the scalings stayed within `exp(+-DRIFT)`, so that no entry
that matters can have underflowed; otherwise it is repeated in the log domain, which is always safe, and the
kernel is rebuilt there.  Sinkhorn's map is non-expansive, so this happens in the first rounds or never.

Sources: Cuturi 2013; Schmitzer 2019 (absorption, epsilon scaling); Thibault et al. 2021, Lehmann et al. 2022
(over-relaxation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.transport import TransportProblem

DRIFT = 20.0  # largest |log scaling| at which a float32 kernel still holds every entry that matters
REBUILD = 8.0  # absorb the scalings into the kernel beyond this
CHECK = 10  # rounds between two looks at the device


@dataclass
class Potentials:
    """Where the iteration stands: `f [B,N]`, `g [B,M]` float64 in cost units, rounds and last error `[B]`."""

    f: Tensor
    g: Tensor
    rounds: Tensor
    error: Tensor
    rebuilds: int = 0
    log_rounds: int = 0


Product = Callable[[Tensor], Tensor]


def products(kernel: Tensor) -> tuple[Product, Product]:
    """`K v` and `K^T u` for `kernel [B,N,M]`.

    On a CPU through NumPy, whose batched product with a column is one `gemv` per problem; `torch.bmm` with a
    column was found up to ten times slower there, and a loop over `torch.mv` twice.
    """
    turned = kernel.transpose(1, 2)
    if kernel.device.type != "cpu" or kernel.requires_grad:
        return (lambda v: torch.bmm(kernel, v[:, :, None])[:, :, 0]), (
            lambda u: torch.bmm(turned, u[:, :, None])[:, :, 0]
        )

    def times(matrix: np.ndarray, x: Tensor) -> Tensor:
        # The processor's "invalid" flag was seen up on finite input and output; solvers look at the values.
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.matmul(matrix, x.numpy()[:, :, None])[:, :, 0])

    return partial(times, kernel.numpy()), partial(times, turned.numpy())


def gibbs(problem: TransportProblem, f: Tensor, *, g: Tensor, eps: Tensor) -> Tensor:
    """`exp((f_i + g_j - C_ij) / eps)` in the dtype of the cost, the exponent in float64."""
    z = problem.cost.double().neg()
    z.add_(f[:, :, None]).add_(g[:, None, :]).div_(eps[:, None, None])
    return z.exp_().to(problem.cost.dtype)


def soft_min(problem: TransportProblem, potential: Tensor, *, eps: Tensor, rows: bool) -> Tensor:
    """`-eps LSE((potential - C) / eps)` over columns (`rows=True`, `[B,N]`) or over rows (`[B,M]`)."""
    z = problem.cost.double().neg()
    z.add_(potential[:, None, :] if rows else potential[:, :, None]).div_(eps[:, None, None])
    return -eps[:, None] * z.logsumexp(2 if rows else 1)


def log_update(
    problem: TransportProblem, potential: Tensor, *, eps: Tensor, rows: bool, old: Tensor, omega: Tensor
) -> Tensor:
    """The exact update of one side in the log domain, relaxed by `omega [B]` (1 is plain)."""
    mass = (problem.a if rows else problem.b).double()
    new = eps[:, None] * mass.log() + soft_min(problem, potential, eps=eps, rows=rows)
    mixed = torch.where(omega[:, None] == 1, new, old + omega[:, None] * (new - old))
    return torch.where(mass > 0, mixed, torch.full_like(mixed, -torch.inf))


def _scale(mass: Tensor, total: Tensor, *, old: Tensor, omega: Tensor | None) -> Tensor:
    new = mass / total.clamp_min(torch.finfo(total.dtype).tiny)
    if omega is None:
        return new
    relaxed = old * (new / old.clamp_min(torch.finfo(old.dtype).tiny)) ** omega[:, None].to(old.dtype)
    return torch.where(mass > 0, relaxed, torch.zeros_like(relaxed))


def _run(
    product: tuple[Product, Product],
    a: Tensor,
    *,
    b: Tensor,
    u: Tensor,
    v: Tensor,
    n: int,
    omega: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`n` rounds, columns first and rows last; only the last is plain when `omega` is given."""
    right, left = product
    for i in range(n):
        mix = None if i == n - 1 else omega
        v = _scale(b, left(u), old=v, omega=mix)
        u = _scale(a, right(v), old=u, omega=mix)
    return u, v


def plain(
    problem: TransportProblem, eps: Tensor, *, span: tuple[Tensor, Tensor], rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed rounds with one kernel and no look at the device; returns `f`, `g` and the plan.

    Only for `range / eps` up to `plain_limit`: then no entry of the centred kernel leaves the dtype.
    `span`: lowest and highest real cost, `[B]` each.
    """
    cost, a, b = problem.cost, problem.a, problem.b
    middle = 0.5 * (span[0] + span[1])
    kernel = middle[:, None, None] - cost
    if problem.pair_mask is not None:
        kernel = kernel.masked_fill_(~problem.pair_mask, 0)
    kernel = kernel.div_(eps[:, None, None].to(cost.dtype)).exp_()
    u, v = _run(products(kernel), a, b=b, u=(a > 0).to(a.dtype), v=torch.ones_like(b), n=rounds, omega=None)
    f = (
        eps[:, None] * u.double().log()
    )  # from 0, as `iterate` begins, so that all roads agree on the constant
    g = eps[:, None] * v.double().log() + middle[:, None].double()
    return f, g, kernel.mul_(u[:, :, None]).mul_(v[:, None, :])


def plain_limit(dtype: torch.dtype) -> float:
    """Largest `range / eps` for `plain`: half of it on either side of 1, squared in a product, is safe."""
    return 600.0 if dtype == torch.float64 else 60.0


def iterate(
    problem: TransportProblem,
    eps: Tensor,
    *,
    state: Potentials,
    rounds: int,
    tolerance: float | None,
    omega: float,
    first: bool,
) -> None:
    """Up to `rounds` rounds at one `eps`, columns first and rows last; updates `state` in place.

    A problem whose columns violate `b` by less than `tolerance` in L1 stops there and leaves the batch.
    `first`: the potentials say nothing yet, so start with a round in the log domain.
    """
    live = torch.arange(eps.shape[0], device=eps.device)
    here = problem
    e, f, g = eps, state.f.clone(), state.g.clone()  # the kernel's base must not follow `state`
    relax = torch.full_like(e, omega)
    kernel: Tensor | None = None
    u, v = torch.ones_like(here.a), torch.ones_like(here.b)
    done, last_dual = 0, torch.full_like(e, -torch.inf)
    while done < rounds and live.numel():
        # Some rounds: in the log domain while the potentials say nothing yet, else as scalings of a kernel.
        n = min(rounds - done, CHECK if done else 1 if first else 2)  # a warm start may be the answer
        if first and done == 0:
            f, g = _log_rounds(here, e, f=f, g=g, n=n, omega=relax)
            state.log_rounds += n
        else:
            if kernel is None:
                kernel = gibbs(here, f, g=g, eps=e)
                product = products(kernel)
                u, v = (f > -torch.inf).to(here.a.dtype), (g > -torch.inf).to(here.b.dtype)
                state.rebuilds += 1
            u2, v2 = _run(product, here.a, b=here.b, u=u, v=v, n=n, omega=relax if omega != 1 else None)
            # One look at the device says whether all of them may stand.  A problem whose scalings drifted too
            # far goes back to where it was, and takes the same rounds where nothing can underflow.
            drift = torch.maximum(_drift(u2, here.a), _drift(v2, here.b))  # NaN where either is
            bad = ~(drift <= DRIFT)
            f2, g2 = f + e[:, None] * u2.double().log(), g + e[:, None] * v2.double().log()
            again, rebuild = torch.stack([bad.any(), (drift > REBUILD).any()]).tolist()
            if again:
                where = bad.nonzero().squeeze(1)
                start = f[where] + e[where, None] * u[where].double().log()
                other = g[where] + e[where, None] * v[where].double().log()
                f2[where], g2[where] = _log_rounds(
                    rows(here, where), e[where], f=start, g=other, n=n, omega=relax[where]
                )
                state.log_rounds += n
            if again or rebuild:
                f, g, kernel = f2, g2, None
            else:
                u, v = u2, v2
        done += n
        # What the caller sees, also of problems that leave below.
        now_f, now_g = (
            (f, g)
            if kernel is None
            else (f + e[:, None] * u.double().log(), g + e[:, None] * v.double().log())
        )
        state.f[live], state.g[live] = now_f, now_g
        state.rounds[live] += n
        if tolerance is None and omega == 1:
            continue
        # Judged on a kernel that holds the potentials: the error of the columns, for the rows are exact, and
        # the dual value, which tells when over-relaxation loses and becomes plain.
        if kernel is None:
            kernel, f, g = gibbs(here, now_f, g=now_g, eps=e), now_f, now_g
            product = products(kernel)
            u, v = (f > -torch.inf).to(here.a.dtype), (g > -torch.inf).to(here.b.dtype)
            state.rebuilds += 1
        error = (v * product[1](u) - here.b).abs().double().sum(1)
        state.error[live] = error
        if omega != 1:
            dual = _dot(here.a, now_f) + _dot(here.b, now_g)
            relax = torch.where(dual < last_dual, torch.ones_like(relax), relax)
            last_dual = dual
        # Who has arrived leaves the batch; nobody does after one round, whose error says little.
        if tolerance is not None:
            stay = ~(error < tolerance) if done > 1 else torch.ones_like(live, dtype=torch.bool)
            if not bool(stay.all()):
                live, e, relax, last_dual = live[stay], e[stay], relax[stay], last_dual[stay]
                f, g, u, v, kernel = f[stay], g[stay], u[stay], v[stay], kernel[stay]
                product = products(kernel)
                here = rows(here, stay.nonzero().squeeze(1))


def iterate_blindly(
    problem: TransportProblem, eps: Tensor, *, state: Potentials, rounds: int, omega: float
) -> None:
    """All of `rounds` in the log domain, which never waits for the device; updates `state` in place."""
    relax = torch.full_like(eps, omega)
    state.f, state.g = _log_rounds(problem, eps, f=state.f, g=state.g, n=rounds, omega=relax)
    state.rounds += rounds
    state.log_rounds += rounds


def _log_rounds(
    problem: TransportProblem, eps: Tensor, *, f: Tensor, g: Tensor, n: int, omega: Tensor
) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(omega)
    for i in range(n):
        mix = one if i == n - 1 else omega
        g = log_update(problem, f, eps=eps, rows=False, old=g, omega=mix)
        f = log_update(problem, g, eps=eps, rows=True, old=f, omega=mix)
    return f, g


def _drift(scaling: Tensor, mass: Tensor) -> Tensor:
    """`[B]` largest |log| of the scalings of atoms with mass; NaN if any is NaN."""
    size = scaling.double().log().abs()
    return torch.where(mass > 0, size, torch.zeros_like(size)).amax(1)


def _dot(mass: Tensor, potential: Tensor) -> Tensor:
    return torch.where(mass > 0, mass * potential, torch.zeros_like(potential)).sum(1)


def rows(problem: TransportProblem, index: Tensor) -> TransportProblem:
    """The problems at `index`, without a copy when all are asked for."""
    if index.numel() == problem.cost.shape[0]:
        return problem
    masks = (problem.row_mask, problem.col_mask)
    r, c = (None if m is None else m[index] for m in masks)
    return TransportProblem(problem.cost[index], problem.a[index], problem.b[index], r, c)
