"""The transport problem: move mass onto mass at least cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pruneopt.brief import Brief, want_tensor
from pruneopt.errors import ProblemError
from pruneopt.problems.unstored import Unstored, rows_of
from pruneopt.tensors import first_true


@dataclass(frozen=True, eq=False, repr=False)
class TransportProblem(Brief):
    """Move mass `a` onto mass `b` at least cost, one problem per batch entry.

    Parameters
    ----------
    cost
        Lower is cheaper; finite wherever both masks are True.  One that is `Unstored` is read by rows where
        solver, readout and certificate can.
    a, b
        Non-negative, each summing to one per problem; zero where masked.
    row_mask, col_mask
        True at real rows and columns; None means all real.
    """

    cost: Float[Tensor, "B N M"]
    a: Float[Tensor, "B N"]
    b: Float[Tensor, "B M"]
    row_mask: Bool[Tensor, "B N"] | None = None
    col_mask: Bool[Tensor, "B M"] | None = None

    @staticmethod
    def build(
        cost: Float[Tensor, "B N M"],
        *,
        a: Float[Tensor, "B N"] | None = None,
        b: Float[Tensor, "B M"] | None = None,
        row_mask: Bool[Tensor, "B N"] | None = None,
        col_mask: Bool[Tensor, "B M"] | None = None,
        check: bool = True,
    ) -> TransportProblem:
        """Validate, promote to at least float32, and fill in uniform marginals.

        Parameters
        ----------
        cost, a, b, row_mask, col_mask
            As in the class; masses that sum to one within 1e-4 are renormalised in float64, uniform ones
            stand in for None.
        check
            Look at values too, which waits for a GPU; shapes are always checked.

        Returns
        -------
        TransportProblem
            In float32 or float64, zero cost where masked.

        Raises
        ------
        ProblemError
            Naming the argument and the sample, for wrong shapes, non-finite or negative entries, a sample
            whose rows or columns are all masked, a range that overflows, and masses that do not sum to one.
        """
        given = {"cost": cost, "a": a, "b": b, "row_mask": row_mask, "col_mask": col_mask}
        for name, value in given.items():
            want_tensor(name, value, error=ProblemError)
        if cost.dim() == 2:
            raise ProblemError("cost has shape [N,M]; add a batch axis: cost[None]")
        if cost.dim() != 3 or not cost.is_floating_point():
            raise ProblemError(f"cost must be floating point [B,N,M], got {cost.dtype} {list(cost.shape)}")
        if 0 in cost.shape:
            raise ProblemError(f"cost is empty: shape {list(cost.shape)}")
        if cost.dtype in (torch.float16, torch.bfloat16):
            cost = cost.float()
        batch, rows, cols = cost.shape
        row_mask = _mask("row_mask", row_mask, shape=(batch, rows), cost=cost)
        col_mask = _mask("col_mask", col_mask, shape=(batch, cols), cost=cost)
        if check:
            _some_real(row_mask, "row")
            _some_real(col_mask, "col")
        a = _mass("a", a, mask=row_mask, shape=(batch, rows), cost=cost, check=check)
        b = _mass("b", b, mask=col_mask, shape=(batch, cols), cost=cost, check=check)
        if isinstance(cost, Unstored):
            problem = TransportProblem(cost, a, b, row_mask, col_mask)
            if check:
                _check_inputs(problem)
            return problem
        if row_mask is not None or col_mask is not None:
            real = torch.ones(batch, rows, cols, dtype=torch.bool, device=cost.device)
            real = real if row_mask is None else real & row_mask[:, :, None]
            real = real if col_mask is None else real & col_mask[:, None, :]
            cost = cost.masked_fill(~real, 0.0)
        if check:
            bad = (~cost.isfinite()).flatten(1).any(1)
            if bad.any():
                raise ProblemError(
                    f"cost is not finite in problem {first_true(bad)}; look for NaN or infinity in the "
                    "signals, or mask forbidden pairs with a finite cost"
                )
        problem = TransportProblem(cost, a, b, row_mask, col_mask)
        if check:
            bad = ~problem.cost_range().isfinite()
            if bad.any():
                raise ProblemError(
                    f"cost spans more than {cost.dtype} holds in problem {first_true(bad)}: highest minus "
                    "lowest overflows; give forbidden pairs a cost of about 10 times the range of the others"
                )
        return problem

    @property
    def pair_mask(self) -> Tensor | None:
        """`[B,N,M]` bool, True where both sides are real; None when nothing is masked."""
        if self.row_mask is None and self.col_mask is None:
            return None
        mask = torch.ones(self.cost.shape, dtype=torch.bool, device=self.cost.device)
        if self.row_mask is not None:
            mask = mask & self.row_mask[:, :, None]
        if self.col_mask is not None:
            mask = mask & self.col_mask[:, None, :]
        return mask

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """`cost`, `a`, `b`: what a gradient can be taken in."""
        return self.cost, self.a, self.b

    def detached(self) -> TransportProblem:
        """The same problem out of the sight of autograd; views, no copies."""
        cost, a, b = (x if isinstance(x, Unstored) else x.detach() for x in self.inputs)
        return TransportProblem(cost, a, b, self.row_mask, self.col_mask)

    def span(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest real cost, `[B]` each."""
        if isinstance(self.cost, Unstored):
            return self._span
        mask, cost = self.pair_mask, self.cost
        if mask is None:
            return cost.amin((1, 2)), cost.amax((1, 2))  # aminmax over a dim is 15 times slower on a CPU
        low, high = cost.masked_fill(~mask, math.inf), cost.masked_fill(~mask, -math.inf)
        return low.amin((1, 2)), high.amax((1, 2))

    @cached_property
    def _span(self) -> tuple[Tensor, Tensor]:
        """Of a cost by rows, which is read for it once."""
        lows, highs = [], []
        for part, entries in rows_of(self.cost).blocks():
            low = high = entries
            for mask, axis in ((self.row_mask, 1), (self.col_mask, 2)):
                if mask is not None:
                    absent = ~(mask[:, part] if axis == 1 else mask).unsqueeze(3 - axis)
                    low, high = low.masked_fill(absent, math.inf), high.masked_fill(absent, -math.inf)
            lows.append(low.amin((1, 2)))
            highs.append(high.amax((1, 2)))
        return torch.stack(lows).amin(0), torch.stack(highs).amax(0)

    def cost_range(self) -> Tensor:
        """`[B]`: largest minus smallest real cost; 1 where the cost is constant."""
        low, high = self.span()
        width = high - low
        return torch.where(width > 0, width, torch.ones_like(width))


def _some_real(mask: Tensor | None, side: str) -> None:
    if mask is not None and not bool(mask.any(1).all()):
        raise ProblemError(
            f"{side}_mask is False everywhere in problem {first_true(~mask.any(1))}: there is nothing to "
            "move; leave such samples out of the batch"
        )


def _check_inputs(problem: TransportProblem) -> None:
    """A cost by rows is finite where what it is computed from is, padding included."""
    for tensor in rows_of(problem.cost).inputs():
        bad = ~tensor.isfinite().flatten(1).all(1)
        if bad.any():
            raise ProblemError(
                f"cost is not finite in problem {first_true(bad)}; look for NaN or infinity in the signals"
            )


def _mask(name: str, mask: Tensor | None, *, shape: tuple[int, int], cost: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ProblemError(f"{name} must be bool {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    return mask.to(cost.device)


def _mass(
    name: str, mass: Tensor | None, *, mask: Tensor | None, shape: tuple[int, int], cost: Tensor, check: bool
) -> Tensor:
    if mass is None:
        mass = torch.ones(shape, dtype=torch.float64, device=cost.device)
    elif tuple(mass.shape) != shape:
        raise ProblemError(f"{name} must have shape {list(shape)}, got {list(mass.shape)}")
    elif not mass.is_floating_point():
        raise ProblemError(f"{name} must be floating point, got {mass.dtype}")
    elif check:
        bad = ~(mass.isfinite() & (mass >= 0)).all(1)
        if bad.any():
            raise ProblemError(f"{name} has a negative or non-finite entry in problem {first_true(bad)}")
        real = mass if mask is None else mass * mask
        total = real.double().sum(1)
        off = (total - 1).abs() > 1e-3 if mass.dtype.itemsize < 4 else (total - 1).abs() > 1e-4
        if off.any():
            i = first_true(off)
            raise ProblemError(
                f"{name} sums to {float(total[i]):.6g} in problem {i}, not to 1; divide it by its sum"
            )
    mass = mass.double()
    if mask is not None:
        mass = mass * mask
    total = mass.sum(1, keepdim=True)
    return (mass / total).to(cost.dtype)
