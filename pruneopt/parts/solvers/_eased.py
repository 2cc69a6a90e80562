"""Costs that an exact solver finds easier: what good potentials pay is taken off.

Problem: the optimum of `C_ij - f_i - g_j` is that of `C_ij`, for any `f` and `g`; only potentials differ.
Update: where most sources do not have a cheapest target of their own, a few Sinkhorn rounds (`eps` a fiftieth
of the range, float32) give `f` and `g` near the optimal ones, so that paths and pivots are short.  An
answer is proved on the costs as they were, so a bad guess costs time only.

Source: Jonker and Volgenant 1987 begin from potentials by column reduction; these are Sinkhorn's instead.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pruneopt.parts.solvers._common import Answer, Atoms, SolveOne

EASY = 0.6  # share of sources with a cheapest target of their own, from which on exact solvers are fast
SHARPNESS = 50.0  # range over epsilon: half of it on either side stays in float32
ROUNDS = 30


def eased(atoms: Atoms, solve_one: SolveOne) -> Answer:
    """`solve_one` on reduced costs where that pays, and its answer for the costs as they are."""
    fewer = min(atoms.cost.shape)
    if fewer < 2 or len(np.unique(atoms.cost.argmin(1))) >= EASY * fewer:
        return solve_one(atoms)
    f, g = _potentials(atoms)
    near = atoms.cost - f[:, None]
    near -= g
    least = near.min(1)
    near -= least[:, None]
    answer = solve_one(replace(atoms, cost=near))
    if answer.f is None or answer.g is None:
        return answer
    return replace(answer, f=answer.f + f + least, g=answer.g + g)


def _potentials(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    kernel = np.exp(((0.5 - atoms.cost) * SHARPNESS).astype(np.float32))
    a, b = atoms.a.astype(np.float32), atoms.b.astype(np.float32)
    u: np.ndarray = np.ones_like(a)
    with np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            v = b / (kernel.T @ u)
            u = a / (kernel @ v)
        f, g = (np.log(x.astype(np.float64)) / SHARPNESS for x in (u, v))
    return np.where(np.isfinite(f), f, 0.0), np.where(np.isfinite(g), g, 0.0) + 0.5
