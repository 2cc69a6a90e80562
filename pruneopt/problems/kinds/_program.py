"""A mixed-integer linear program of one sample, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem


@dataclass
class Program:
    """`max c x + constant` over `low <= A x <= high`, `floor <= x <= ceiling`.

    The first entries of x are binary: whether the tokens `place` are chosen.
    """

    place: np.ndarray
    c: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)
    cols: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    height: int = 0
    constant: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.place)

    @property
    def unit(self) -> float:
        """Largest coefficient of the objective, 0 where all choices are worth the same."""
        return float(np.abs(self.c).max(initial=0.0))

    def centre(self, where: slice, times: float) -> None:
        """Take the middle of a block of the objective away from it, where its entries of x sum to `times`.

        Exact, and what is left has no digits lost to an offset that all choices share.
        """
        part = self.c[where]
        middle = (part.max() + part.min()) / 2
        self.c = self.c.copy()
        self.c[where] -= middle
        self.constant += float(middle) * times

    def extend(self, worth: np.ndarray) -> np.ndarray:
        """Append continuous entries of x between 0 and 1 with these coefficients; their columns."""
        first = len(self.c)
        self.c = np.concatenate([self.c, worth])
        self.floor = np.concatenate([self.floor, np.zeros(len(worth))])
        self.ceiling = np.concatenate([self.ceiling, np.ones(len(worth))])
        return np.arange(first, len(self.c))

    def add(self, rows: Any, cols: Any, *, values: Any, low: Any, high: Any) -> None:
        """Constraint block: triplets with rows counted from 0 within the block."""
        low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
        cols = np.asarray(cols)
        self.rows.append(np.broadcast_to(np.asarray(rows), cols.shape) + self.height)
        self.cols.append(cols)
        self.values.append(np.broadcast_to(np.asarray(values, float), cols.shape))
        self.low.append(low)
        self.high.append(high)
        self.height += len(low)

    def add_conflicts(self, pairs: np.ndarray) -> None:
        """At most one token of every greedy clique of `pairs`; the cliques cover all conflicting pairs."""
        left = np.triu(pairs, 1)
        while True:
            first = np.flatnonzero(left.any(1))
            if not len(first):
                return
            i = int(first[0])
            clique, common = [i], pairs[i].copy()
            for j in np.flatnonzero(left[i]):
                if common[j]:
                    clique.append(int(j))
                    common &= pairs[j]
            index = np.array(clique)
            left[np.ix_(index, index)] = False
            self.add(0, index, values=1.0, low=-np.inf, high=1)


def choosing(
    problem: SubsetProblem, usable: Tensor | np.ndarray | None = None, *, least: int | None = None
) -> Program:
    """Choose `k` (or from `least` to `k`) of the `usable` `[N]` tokens of the only sample.

    Protected tokens are chosen.  The objective is zero; whoever calls puts in what a token is worth.
    """
    usable = problem.real[0] if usable is None else usable
    place = np.flatnonzero(usable if isinstance(usable, np.ndarray) else usable.cpu().numpy())
    k = int(problem.k[0])
    floor = np.zeros(len(place))
    if problem.protected is not None:
        floor[problem.protected[0].cpu().numpy()[place]] = 1
    program = Program(place, np.zeros(len(place)), floor, np.ones(len(place)))
    program.add(0, np.arange(len(place)), values=1.0, low=k if least is None else least, high=k)
    return program


def placed(tensor: Tensor, place: np.ndarray) -> np.ndarray:
    """Entries of the only sample of `[1,N]` or `[1,N,N]` at `place`, as a float64 array (bool stays bool)."""
    whole = tensor[0].cpu().numpy()
    return whole[place] if whole.ndim == 1 else whole[np.ix_(place, place)]
