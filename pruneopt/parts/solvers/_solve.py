"""One line from a cost matrix to a certified answer."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import TransportSolver
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry
from pruneopt.tensors import first_true

Mask = Tensor | tuple[Tensor | None, Tensor | None]


def solve(
    name: str,
    cost: Float[Tensor, "B N M"],
    *,
    a: Float[Tensor, "B N"] | None = None,
    b: Float[Tensor, "B M"] | None = None,
    mask: Mask | None = None,
    **params: Any,
) -> TransportSolution:
    """Solve a batch of transport problems with a registered solver.

    Parameters
    ----------
    name
        `sinkhorn`, `emd`, `exact`, ... (`pruneopt list solvers`).
    cost
        Any floating dtype, any device; lower is cheaper.
    a, b
        Each row summing to one; uniform over the real atoms when None.
    mask
        True at real atoms: `[B,N]` for both sides of a square problem, `(row_mask, col_mask)`, or `[B,N,M]`
        if it marks whole rows and columns.
    **params
        Parameters of the solver; `start=(f, g)` where it takes a warm start.

    Returns
    -------
    TransportSolution
        Plan, potentials and a certificate that needs no reference solver.

    Raises
    ------
    ProblemError
        For bad input, naming the argument and the problem.
    RegistryError
        For an unknown name.
    SpecError
        For an unknown or out-of-range parameter.
    """
    solver_type = registry("solvers").get(name)
    if not issubclass(solver_type, TransportSolver):
        raise ProblemError(
            f"{name!r} solves subset problems, not transport; build a SubsetProblem and call its solve method"
        )
    if not isinstance(cost, Tensor):
        raise ProblemError(f"cost must be a torch tensor [B,N,M], got {type(cost).__name__}")
    start = params.pop("start", None)
    solver = solver_type.from_spec(params)
    row_mask, col_mask = _masks(mask, cost)
    problem = TransportProblem.build(cost, a=a, b=b, row_mask=row_mask, col_mask=col_mask)
    if start is None:
        return solver.solve(problem)
    if not getattr(solver, "warm", False):
        raise ProblemError(f"{name} takes no warm start; leave out `start`")
    return solver.solve(problem, start=start)  # type: ignore[call-arg]


def _masks(mask: Mask | None, cost: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if mask is None or isinstance(mask, tuple):
        return mask or (None, None)
    if mask.dim() == 2:
        if cost.dim() == 3 and cost.shape[1] != cost.shape[2]:
            raise ProblemError(
                f"mask [B,N] fits square problems only, cost is {list(cost.shape)}; give (row_mask, col_mask)"
            )
        return mask, mask
    if mask.dim() != 3 or mask.shape != cost.shape:
        raise ProblemError(f"mask must be [B,N], (row_mask, col_mask) or {list(cost.shape)}")
    rows, cols = mask.any(2), mask.any(1)
    odd = (mask != (rows[:, :, None] & cols[:, None, :])).flatten(1).any(1)
    if odd.any():
        raise ProblemError(
            f"mask of problem {first_true(odd)} forbids single pairs; mask whole rows and columns, "
            "and give forbidden pairs a finite cost of about 10 times the range"
        )
    return rows, cols
