"""Random importance: the control that every comparison carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Score, param
from pruneopt.signals import Signals


@dataclass(frozen=True)
class RandomScore(Score):
    """A random permutation `[B,N]` of ranks, the same for every sample of a run with the same seed.

    Drawn on the CPU from `torch.Generator().manual_seed(seed)`, so it does not depend on the device, on
    batch mates or on the global generator.  Report several seeds.
    """

    name: ClassVar[str] = "random"
    tags: ClassVar[frozenset[str]] = frozenset({"stochastic"})
    seed: int = param(0, low=0, doc="seed of the permutation")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        generator = torch.Generator().manual_seed(self.seed)
        # One draw per place, so that padding a sample further does not change its ranks.
        ranks = torch.rand(signals.tokens, generator=generator, dtype=torch.float64)
        return ranks.to(signals.device, torch.float32).expand(signals.batch, -1)
