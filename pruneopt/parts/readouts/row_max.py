"""How concentrated the row of a token is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Readout
from pruneopt.parts.readouts._common import blocks
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem


@dataclass(frozen=True)
class RowMax(Readout):
    """`I_i = max_j P_ij / sum_j P_ij`, `[B,N]` in [0,1]; higher (one clear target) is kept.

    The shape of a plan is the least stable thing to read: at eps 0.1 its order agrees with that of the exact
    plan only by chance (docs/solvers.md).  Zero for tokens without mass.
    """

    name: ClassVar[str] = "row_max"
    tags: ClassVar[frozenset[str]] = frozenset({"reads_shape"})

    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]:
        found = [p.amax(2) / p.sum(2).clamp_min(1e-30) for _, _, p in blocks(problem, solution)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)
