"""Sinkhorn rounds at the speed of matrix-vector products, with the robustness of the log domain.

Problem: scalings `u`, `v` of `K_ij = exp((f_i + g_j - C_ij) / eps)` such that the plan `u_i K_ij v_j` has the
marginals `a` and `b`.  Update: `v = b / (K^T u)`, then `u = a / (K v)`; the potentials are `f + eps log u`
and `g + eps log v`.

`K` is built at potentials that are known already, so `u` and `v` start at 1.  A run of rounds is accepted
only if they stayed within `exp(+-DRIFT)`, so that no entry that matters can have underflowed; otherwise it is
repeated in the log domain, which is always safe, and the kernel is built anew.  Sinkhorn's map is
non-expansive, so this happens in the first rounds or never.

Exponents are float64, kernels and products are in the dtype of the cost.

Sources: Cuturi 2013; Schmitzer 2019 (absorption, epsilon scaling); Thibault et al. 2021, Lehmann et al. 2022
(over-relaxation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.transport import TransportProblem

DRIFT = 20.0  # largest |log scaling| at which a float32 kernel still holds every entry that matters
REBUILD = DRIFT / 2  # absorb the scalings beyond this: the map is non-expansive, so as far again is DRIFT
CHECK = 10  # rounds between two looks at the device
BLOCK = 2**17  # entries of a float64 copy that a processor's cache still holds


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


def _blocks(cost: Tensor) -> Iterator[tuple[slice, slice]]:
    """Problems and rows, so few at a time on a CPU that their float64 copies stay in the cache; else all."""
    batch, rows, columns = cost.shape
    some, step = (1, max(1, BLOCK // columns)) if cost.device.type == "cpu" else (batch, rows)
    for i in range(0, batch, some):
        for j in range(0, rows, step):
            yield slice(i, i + some), slice(j, j + step)


def gibbs(problem: TransportProblem, f: Tensor, *, g: Tensor, eps: Tensor) -> Tensor:
    """`exp((f_i + g_j - C_ij) / eps)` in the dtype of the cost, the exponent in float64."""
    kernel = torch.empty_like(problem.cost, memory_format=torch.contiguous_format)
    for which, row in _blocks(kernel):
        z = f[which, row, None] - problem.cost[which, row]
        z.add_(g[which, None, :]).div_(eps[which, None, None])
        kernel[which, row].copy_(z).exp_()
    return kernel


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
    # From potentials of 0, as `iterate` begins, so that all roads agree on the constant.
    zero = torch.zeros_like(a, dtype=torch.float64)
    base = middle[:, None].double().expand_as(b)
    start = Scaled(problem, eps, zero, base, kernel, (a > 0).to(a.dtype), torch.ones_like(b))
    end = start.run(rounds, omega=None)
    return *end.potentials(), end.plan()


def plain_limit(dtype: torch.dtype) -> float:
    """Largest `range / eps` for `plain`: half of it on either side of 1, squared in a product, is safe."""
    return 600.0 if dtype == torch.float64 else 60.0


@dataclass(frozen=True, eq=False)
class Scaled:
    """Problems at one `eps [B]` each: scalings `u [B,N]`, `v [B,M]` of a kernel built at `f`, `g`.

    `far`: the scalings are so far from 1 that they should be absorbed before the next rounds.
    """

    problem: TransportProblem
    eps: Tensor
    f: Tensor
    g: Tensor
    kernel: Tensor
    u: Tensor
    v: Tensor
    far: bool = False

    @classmethod
    def at(cls, problem: TransportProblem, eps: Tensor, *, f: Tensor, g: Tensor) -> Scaled:
        """The kernel that holds these potentials, so that both scalings are 1."""
        dtype = problem.cost.dtype
        kernel = gibbs(problem, f, g=g, eps=eps)
        return cls(problem, eps, f, g, kernel, (f > -torch.inf).to(dtype), (g > -torch.inf).to(dtype))

    @classmethod
    def opening(cls, problem: TransportProblem, eps: Tensor) -> Scaled:
        """The first round from potentials of zero, and the kernel it leaves.

        The columns are updated in the dtype of the cost: relative to the cheapest entry of a column (its
        c-transform of zero), what matters in its sum is exact to the rounding of a sum.  The rows are
        updated with float64 exponents, relative to their largest, and those are the kernel.
        """
        cost, a, b, dtype = problem.cost, problem.a, problem.b, problem.cost.dtype
        some = a > 0
        near = cost if bool(some.all()) else cost.masked_fill(~some[:, :, None], torch.inf)
        low, share = near.amin(1), eps[:, None, None].to(dtype)
        total = torch.zeros_like(b, dtype=torch.float64)
        for which, row in _blocks(cost):
            z = low[which, None, :] - near[which, row]
            total[which] += z.div_(share[which]).exp_().sum(1)
        g = low.double() + eps[:, None] * (b.double().log() - total.log())
        kernel = torch.empty_like(cost, memory_format=torch.contiguous_format)
        f = torch.empty_like(a, dtype=torch.float64)
        for which, row in _blocks(cost):
            z = g[which, None, :] - cost[which, row]
            top = z.amax(2)
            kernel[which, row].copy_(z.sub_(top[:, :, None]).div_(eps[which, None, None])).exp_()
            f[which, row] = -top
        v = (b > 0).to(dtype)
        u = a / products(kernel)[0](v)
        kernel.mul_(u[:, :, None])
        return cls(problem, eps, f + eps[:, None] * u.double().log(), g, kernel, some.to(dtype), v)

    @cached_property
    def product(self) -> tuple[Product, Product]:
        return products(self.kernel)

    def run(self, n: int, *, omega: Tensor | None) -> Scaled:
        """`n` rounds, columns first and rows last; only the last is plain when `omega [B]` is given."""
        if omega is None and self.u.device.type == "cpu":
            return self._run_on_host(n)
        right, left = self.product
        u, v, a, b = self.u, self.v, self.problem.a, self.problem.b
        for i in range(n):
            mix = None if i == n - 1 else omega
            v = _scale(b, left(u), old=v, omega=mix)
            u = _scale(a, right(v), old=u, omega=mix)
        return replace(self, u=u, v=v)

    def _run_on_host(self, n: int) -> Scaled:
        """The same through NumPy, in place, with as many problems at a time as the cache holds."""
        u, v, tiny = self.u.clone(), self.v.clone(), torch.finfo(self.u.dtype).tiny
        kernel, a, b, x, y = (t.numpy() for t in (self.kernel, self.problem.a, self.problem.b, u, v))
        some = max(1, BLOCK // kernel[0].size)
        with np.errstate(all="ignore"):  # solvers look at the values
            for i in range(0, len(kernel), some):
                k = kernel[i : i + some]
                turned, p, q = k.swapaxes(1, 2), a[i : i + some, :, None], b[i : i + some, :, None]
                row, column = x[i : i + some, :, None], y[i : i + some, :, None]
                for _ in range(n):
                    np.matmul(turned, row, out=column)
                    np.divide(q, np.maximum(column, tiny, out=column), out=column)
                    np.matmul(k, column, out=row)
                    np.divide(p, np.maximum(row, tiny, out=row), out=row)
        return replace(self, u=u, v=v)

    def advance(self, n: int, *, omega: Tensor | None) -> tuple[Scaled, bool]:
        """`n` rounds where nothing can underflow; says whether some problem needed the log domain for it.

        One look at the device tells whether all scalings may stand.  A problem whose scalings drifted too far
        goes back to where it was and takes the same rounds in the log domain.
        """
        here = self.absorbed() if self.far else self
        moved = here.run(n, omega=omega)
        drift = torch.maximum(_drift(moved.u, self.problem.a), _drift(moved.v, self.problem.b))
        bad = ~(drift <= DRIFT)  # NaN as well
        again, far = torch.stack([bad.any(), (drift > REBUILD).any()]).tolist()
        if not again:
            return replace(moved, far=far), False
        f, g = moved.potentials()
        where = bad.nonzero().squeeze(1)
        back = here.keep(where)
        old_f, old_g = back.potentials()
        mix = torch.ones_like(back.eps) if omega is None else omega[where]
        f[where], g[where] = _log_rounds(back.problem, back.eps, f=old_f, g=old_g, n=n, omega=mix)
        return Scaled.at(self.problem, self.eps, f=f, g=g), True

    def absorbed(self) -> Scaled:
        """The same potentials, all of them in the kernel."""
        f, g = self.potentials()
        return Scaled.at(self.problem, self.eps, f=f, g=g)

    def potentials(self) -> tuple[Tensor, Tensor]:
        scale = self.eps[:, None]
        return self.f + scale * self.u.double().log(), self.g + scale * self.v.double().log()

    def plan(self) -> Tensor:
        """The plan, written over the kernel: the last thing that is asked."""
        return self.kernel.mul_(self.u[:, :, None]).mul_(self.v[:, None, :])

    def error(self) -> Tensor:
        """`[B]` L1 violation of the columns; the rows are exact after a round."""
        return (self.v * self.product[1](self.u) - self.problem.b).abs().double().sum(1)

    def dual(self) -> Tensor:
        """`[B]` what the potentials are worth, up to a constant."""
        f, g = self.potentials()
        return _dot(self.problem.a, f) + _dot(self.problem.b, g)

    def keep(self, index: Tensor) -> Scaled:
        """The problems at `index`, without a copy when all are asked for."""
        if index.numel() == len(self.eps):
            return self
        eps, f, g, kernel, u, v = (x[index] for x in (self.eps, self.f, self.g, self.kernel, self.u, self.v))
        return Scaled(rows(self.problem, index), eps, f, g, kernel, u, v, self.far)


def iterate(
    problem: TransportProblem,
    eps: Tensor,
    *,
    state: Potentials,
    rounds: int,
    tolerance: float | None,
    omega: float,
    first: bool,
) -> Tensor:
    """Up to `rounds` rounds at one `eps`, columns first and rows last; updates `state`, returns the plan.

    A problem whose columns violate `b` by less than `tolerance` in L1 stops there and leaves the batch.
    `first`: the potentials are zero and say nothing yet.
    """
    live = torch.arange(len(eps), device=eps.device)
    relax = None if omega == 1 else torch.full_like(eps, omega)
    best = torch.full_like(eps, -torch.inf)
    at = None if first else Scaled.at(problem, eps, f=state.f, g=state.g)
    ended: list[tuple[Tensor, Scaled]] = []
    done = 0
    while at is None or (done < rounds and live.numel()):
        if at is None:
            at, n = Scaled.opening(problem, eps), 1
        else:
            n = min(rounds - done, CHECK if done else 2)  # a warm start may be the answer
            state.rebuilds += at.far
            at, safe = at.advance(n, omega=relax)
            state.log_rounds += n if safe else 0
        done += n
        state.rounds[live] += n
        if relax is not None:
            # The dual value tells when over-relaxation loses; it becomes plain there.
            dual = at.dual()
            relax, best = torch.where(dual < best, torch.ones_like(relax), relax), dual
        if tolerance is None:
            continue
        # Who has arrived leaves the batch; nobody does after one round, whose error says little.
        error = at.error()
        state.error[live] = error
        arrived = (error < tolerance) & (done > 1)
        if bool(arrived.any()):
            out, stay = arrived.nonzero().squeeze(1), (~arrived).nonzero().squeeze(1)
            ended.append((live[out], at.keep(out)))
            live, at, best = live[stay], at.keep(stay), best[stay]
            relax = None if relax is None else relax[stay]
    assert at is not None
    return _gathered([*ended, (live, at)], state)


def _gathered(ended: list[tuple[Tensor, Scaled]], state: Potentials) -> Tensor:
    """Potentials into `state`, and the plan `[B,N,M]`, of problems that ended at different times."""
    plans = []
    for where, at in ended:
        state.f[where], state.g[where] = at.potentials()
        plans.append(at.plan())
    if len(ended) == 1:
        return plans[0]
    order = torch.cat([where for where, _ in ended]).argsort()
    return torch.cat(plans)[order]


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
