"""Tags: behaviour that a part declares and the checks rely on."""

from __future__ import annotations

TAGS: dict[str, str] = {
    # terms over signals
    "uses_positions": "reads the grid; permuting tokens together with their coordinates changes nothing",
    "uses_order": "depends on the order of the tokens by design",
    "stochastic": "draws from a generator seeded by its parameter `seed`",
    "across_batch": "depends on batch mates by design, for parity with released code",
    "symmetric": "`[B,N,N]` equal to its transpose; a cost without it needs `symmetric: mean` in problems of "
    "unordered pairs",
    "zero_diagonal": "no distance between a token and itself",
    "negative_type": "`exp(-C / h)` is positive semi-definite for every h above 0",
    "nonnegative": "no entry below zero",
    "unit_range": "entries between 0 and 1",
    "psd": "positive semi-definite kernel",
    "triangle": "distances obey the triangle inequality",
    "scale_free": "multiplying all features by a positive number changes nothing",
    "homogeneous": "multiplying all features by c multiplies the result by c",
    "differentiable": "gradients with respect to floating-point signals are right",
    "groups": "values are group numbers, not a ranking",
    "host": "waits for the device or works on the host",
    # solvers
    "exact": "returns an optimum",
    "exact_budget": "keeps exactly k tokens",
    "nested": "the choice for k is part of the choice for k + 1",
    "factor_two_on_metrics": "within a factor of two of the optimum for metric distances",
    "submodular_greedy": "at least 1 - 1/e of the optimum for non-negative similarities",
    "cost_blind": "a control that does not look at the objective",
    "relaxed": "constrains one side of the transport only",
    "uniform_square": "accepts uniform marginals of equal size only",
    "small": "refuses problems above a size named in the error",
    "time_limit": "stops at `time_limit` seconds with status TIME_LIMIT and a bound",
    "reads_shape": "reads where the mass of a source goes: cheaper need not mean higher",
    "rows": "reads a pairwise term row by row, so that it need not be stored",
    "chaotic": "rounding may change everything after it; no agreement beyond the budget is asked",
}
