"""Linear programming bounds of sets in which no two tokens conflict.

A choice holds at most one token of a clique of conflicts.  The program `max w x` over shares with one row for
every clique in sight is solved; its dual prices, made feasible, bound every choice whatever the solver's
tolerances are; then cliques that its answer overfills are added.  With all cliques this is the fractional
clique cover bound.  Source: Padberg 1973 (clique inequalities).
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
OVERFULL = 1e-3  # cliques that hold more than 1 by less than this are not worth a row


def packing_bound(worth: np.ndarray, pairs: np.ndarray, *, k: int, goal: float | None = None) -> float:
    """No choice of at most `k` tokens, no two of them in `pairs` `[n,n]`, has a larger sum of `worth` `[n]`.

    With a `goal` it ends once the bound is below that, or once even the last gain, repeated, would not get
    there: rounds gain less and less.
    """
    unit = float(np.abs(worth).max(initial=0.0))
    if unit == 0:
        return 0.0
    worth = worth / unit
    degree = pairs.sum(1) / (1.0 + len(worth))
    rows = _distinct(cliques(np.arange(len(worth)), degree, pairs=pairs))
    best = np.inf
    for left in reversed(range(ROUNDS)):
        share, price, top = _prices(worth, rows, k=k)
        before = best
        best = min(best, float(price.sum() + k * top + np.maximum(worth - top - price @ rows, 0).sum()))
        if goal is not None and not goal / unit <= best <= goal / unit + left * (before - best):
            break
        found = cliques(np.flatnonzero(share > 1e-6), share + 1e-6 * degree, pairs=pairs)
        found = found[found @ share > 1 + OVERFULL]
        grown = _distinct(np.concatenate([rows, found]))
        if len(grown) == len(rows):
            break
        rows = grown
    # sums of n numbers of size one, and of prices
    return unit * (best + 1e-14 * len(worth) * (1 + k))


def cliques(tokens: np.ndarray, weight: np.ndarray, *, pairs: np.ndarray) -> np.ndarray:
    """`[t,n]` bool: a clique of `pairs` around each of `tokens` `[t]`, grown by the heaviest that fits."""
    inside = np.zeros((len(tokens), len(weight)), dtype=bool)
    each = np.arange(len(tokens))
    inside[each, tokens] = True
    fits = pairs[tokens]
    while len(each := each[fits[each].any(1)]):
        token = np.where(fits[each], weight, -np.inf).argmax(1)
        inside[each, token] = True
        fits[each] &= pairs[token]
    return inside


def _distinct(rows: np.ndarray) -> np.ndarray:
    packed = np.packbits(rows, axis=1)
    return rows[np.unique(packed.view(f"V{packed.shape[1]}"), return_index=True)[1]]


def _prices(worth: np.ndarray, rows: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Shares of the best packing, prices of the cliques `rows` and of a token; zeros without an answer."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    every, room = np.ones((1, len(worth))), np.ones(len(rows) + 1)
    room[-1] = k
    matrix = csr_array(np.concatenate([rows, every]))
    answer = linprog(-worth, A_ub=matrix, b_ub=room, bounds=(0, 1), method="highs-ds")
    if answer.x is None:
        return np.zeros_like(worth), np.zeros(len(rows)), 0.0
    price = np.maximum(-answer.ineqlin.marginals, 0)
    return answer.x, price[:-1], float(price[-1])
