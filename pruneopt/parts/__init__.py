"""Parts: what a spec can name."""

from pruneopt.parts._kinds import (
    BudgetRule,
    CostTerm,
    Grouping,
    Insertion,
    Kernel,
    Marginal,
    Readout,
    Score,
    Solver,
    Step,
    SubsetSolver,
    TransportSolver,
)
from pruneopt.parts._nested import Weighted
from pruneopt.parts._part import Part, each_param, param, part_param, sum_param

__all__ = [
    "BudgetRule", "CostTerm", "Grouping", "Insertion", "Kernel", "Marginal", "Part", "Readout", "Score",
    "Solver", "Step", "SubsetSolver", "TransportSolver", "Weighted", "each_param", "param", "part_param",
    "sum_param",
]  # fmt: skip
