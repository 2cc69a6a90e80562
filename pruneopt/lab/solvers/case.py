"""One case of the transport bench, and how TopV's problem is made of hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruneopt.parts.costs.central_distance import CentralDistance
from pruneopt.parts.costs.feature_sq_l2 import FeatureSquaredL2
from pruneopt.parts.costs.spatial_gaussian import SpatialGaussian
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals


@dataclass(frozen=True)
class Case:
    """A batch of problems of one family: cost builder, marginals, and what a trivial predictor would say."""

    family: str
    build: Callable[[], Tensor]
    a: Tensor
    b: Tensor
    trivial: dict[str, Tensor] = field(default_factory=dict)

    def problem(self) -> TransportProblem:
        return TransportProblem.build(self.build(), a=self.a, b=self.b, check=False)


def grid(tokens: int) -> tuple[Tensor, Tensor]:
    """Column and row `[N,2]` and size `[N,2]` of the most square grid with `tokens` cells."""
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    width = tokens // height
    place = torch.arange(tokens)
    xy = torch.stack([place % width, place // width], 1).float()
    return xy, torch.tensor([width, height]).float().expand(tokens, 2)


def topv_cost(signals: Signals, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 0.01) -> Tensor:
    """TopV's cost with the weights of its card: min-max features, Gaussian space, raw centre distance."""
    feature = FeatureSquaredL2()(signals)
    low, high = feature.amin((1, 2), keepdim=True), feature.amax((1, 2), keepdim=True)
    cost = (feature - low) / (high - low) * alpha
    return cost + beta * SpatialGaussian()(signals) + gamma * CentralDistance()(signals)[:, :, None]


def from_tokens(family: str, source: Tensor, *, target: Tensor, xy: Tensor, size: Tensor) -> Case:
    """TopV's problem on given hidden states `[B,N,D]`."""
    batch = len(source)
    signals = Signals(
        {
            "hidden_in": source,
            "post_attention_norm": target,
            "xy": xy.expand(batch, -1, -1),
            "grid": size.expand(batch, -1, -1),
        }
    )
    norm = [x.norm(dim=2).double() for x in (source, target)]
    a, b = ((x / x.sum(1, keepdim=True)).float() for x in norm)
    return Case(family, lambda: topv_cost(signals), a, b, trivial_ranks(source.norm(dim=2), xy))


def trivial_ranks(norm: Tensor, xy: Tensor) -> dict[str, Tensor]:
    centre = -(xy - xy.mean(0)).norm(dim=1)
    return {
        "token_norm": norm,
        "uniform": torch.zeros_like(norm),
        "centre_distance": centre.expand_as(norm),
    }
