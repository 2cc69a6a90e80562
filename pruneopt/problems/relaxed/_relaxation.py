"""What every relaxed problem answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from pruneopt.problems.certificate import Certificate
from pruneopt.problems.transport import TransportProblem


class Relaxation(ABC):
    """A problem over the cost and the masses of a transport problem that asks less of the plan.

    A solution that carries one is an answer to it: `value`, `lower_bound` and `gap` are about this problem
    and say nothing about the balanced one, whose optimum is another number.
    """

    @abstractmethod
    def certify(self, problem: TransportProblem, plan: Tensor, *, g: Tensor | None) -> Certificate:
        """The certificate of any plan `[B,N,M]` and target potential `[B,M]` (zeros when None).

        Parameters
        ----------
        problem
            Cost, masses and masks.
        plan
            Made feasible for this problem before it is valued, so `value` is never below the optimum.
        g
            Any numbers; they are made dual feasible, so `lower_bound` is never above it.

        Returns
        -------
        Certificate
            `row_error`, `col_error`: how far the plan breaks what this problem still asks of each side.
        """
