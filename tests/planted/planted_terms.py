"""Correct terms over signals, and bad ones that each carry one bug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import CostTerm, Insertion, Kernel, Marginal, Score, param
from pruneopt.testing.cases import make_signals


@dataclass(frozen=True)
class Good(Score):
    """Norm of a token relative to the largest of its sample, `[B,N]` in [0,1]; higher is kept."""

    name: ClassVar[str] = "good_norm"
    tags: ClassVar[frozenset[str]] = frozenset({"nonnegative", "unit_range", "scale_free"})

    @property
    def needs(self):
        return frozenset({"features"})

    def norms(self, signals):
        return signals["features"].float().norm(dim=2).masked_fill(~signals.mask, 0)

    def __call__(self, signals):
        norms = self.norms(signals)
        return norms / norms.amax(1, keepdim=True).clamp_min(1e-12)

    def sign_case(self):
        signals = make_signals(["features"], batch=1)
        signals["features"][0, 3] *= 10
        signals["features"][0, 5] *= 0.1
        return signals, 3, 5


@dataclass(frozen=True)
class PaddingLast(Good):
    """Takes the first slots of a sample for its tokens, wherever its padding stands."""

    name = "padding_last"

    def __call__(self, signals):
        norms = self.norms(signals)
        first = torch.arange(signals.tokens) < signals.mask.sum(1, keepdim=True)
        return norms / norms.masked_fill(~first, 0).amax(1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class LowPaddingLeaks(Score):
    """Sum of a token above the smallest sum of any slot: padding below all tokens moves every score."""

    name: ClassVar[str] = "low_padding_leaks"

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        total = signals["features"].float().sum(2)
        return total - total.amin(1, keepdim=True)


@dataclass(frozen=True)
class GoodKernel(Kernel):
    """Cosine similarity `[B,N,N]`."""

    name: ClassVar[str] = "good_cosine"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric", "psd", "scale_free"})

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        x = signals["features"].float()
        x = x / x.norm(dim=2, keepdim=True).clamp_min(1e-30)
        return x @ x.transpose(1, 2)


@dataclass(frozen=True)
class GoodDistance(CostTerm):
    """Euclidean distance `[B,N,N]`, in feature units; lower is cheaper."""

    name: ClassVar[str] = "good_distance"
    tags: ClassVar[frozenset[str]] = frozenset(
        {"symmetric", "zero_diagonal", "nonnegative", "triangle", "homogeneous"}
    )

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        x = signals["features"].float().masked_fill(~signals.mask[:, :, None], 0)
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class GoodSmooth(Score):
    """Sum of squares of a token, `[B,N]`; higher is kept."""

    name: ClassVar[str] = "good_smooth"
    tags: ClassVar[frozenset[str]] = frozenset({"differentiable"})

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        x = signals["features"]
        x = x if x.dtype == torch.float64 else x.float()
        return x.square().sum(2)


@dataclass(frozen=True)
class GoodRandom(Score):
    """Seeded random ranks `[B,N]`; higher is kept."""

    name: ClassVar[str] = "good_random"
    tags: ClassVar[frozenset[str]] = frozenset({"stochastic"})
    seed: int = param(0, low=0)

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        g = torch.Generator().manual_seed(self.seed)
        return torch.rand(signals.tokens, generator=g).expand(signals.batch, -1)


@dataclass(frozen=True)
class GoodMarginal(Marginal):
    """Uniform mass `[B,N]`."""

    name: ClassVar[str] = "good_uniform"

    def __call__(self, signals):
        return signals.mask.float() / signals.mask.sum(1, keepdim=True)


# -- being data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpecForgets(Good):
    """`to_spec` renames itself."""

    name = "spec_forgets"

    def to_spec(self):
        return {"kind": "something_else"}


@dataclass(frozen=True)
class WorksInInit(Good):
    """Builds a tensor while being constructed."""

    name: ClassVar[str] = "works_in_init"

    def __post_init__(self):
        torch.zeros(3)
        super().__post_init__()


class NotFrozen(Good):
    """Forgets the decorator, so attributes can be assigned."""

    name = "not_frozen"


@dataclass(frozen=True, repr=False)
class ReprLies(Good):
    """Its repr does not read back."""

    name: ClassVar[str] = "repr_lies"

    def __repr__(self):
        return "<a term>"


@dataclass(frozen=True)
class AcceptsAnything(Good):
    """Skips the range check of its parameter."""

    name: ClassVar[str] = "accepts_anything"
    power: float = param(1.0, low=0)

    def __post_init__(self):
        pass


@dataclass(frozen=True)
class UnknownTag(Good):
    """Declares a tag that does not exist."""

    name: ClassVar[str] = "unknown_tag"
    tags: ClassVar[frozenset[str]] = frozenset({"symetric"})


@dataclass(frozen=True)
class InsertionAccepts(Insertion):
    """An insertion point whose layer may be anything."""

    name: ClassVar[str] = "insertion_accepts"
    layer: int = param(2, low=1)
    layer_index: ClassVar[int] = 2
    provides: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        pass


# -- behaviour -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadsUndeclared(Good):
    """Reads the keys without declaring them."""

    name: ClassVar[str] = "reads_undeclared"

    def norms(self, signals):
        return super().norms(signals) + 0 * signals["keys"].float().sum((1, 3))


@dataclass(frozen=True)
class SqueezesBatch(Good):
    """Squeezes away a batch of one."""

    name: ClassVar[str] = "squeezes_batch"

    def __call__(self, signals):
        return super().__call__(signals).squeeze()


@dataclass(frozen=True)
class HalfOutput(Good):
    """Answers in the dtype of the input."""

    name: ClassVar[str] = "half_output"

    def __call__(self, signals):
        return super().__call__(signals).to(signals["features"].dtype)


@dataclass(frozen=True)
class HalfArithmetic(Good):
    """Takes the norm in half precision and promotes afterwards."""

    name: ClassVar[str] = "half_arithmetic"

    def norms(self, signals):
        x = signals["features"] / 64  # no overflow, only rounding
        return x.norm(dim=2).float().masked_fill(~signals.mask, 0)


@dataclass(frozen=True)
class DividesByZero(Good):
    """Does not guard the division."""

    name: ClassVar[str] = "divides_by_zero"

    def __call__(self, signals):
        norms = self.norms(signals)
        return norms / norms.amax(1, keepdim=True)


@dataclass(frozen=True)
class HidesNaN(Good):
    """Replaces NaN by zero."""

    name: ClassVar[str] = "hides_nan"

    def norms(self, signals):
        return super().norms(signals).nan_to_num(0)


@dataclass(frozen=True)
class IndexDependent(Good):
    """Adds a little for every place in the sequence."""

    name: ClassVar[str] = "index_dependent"
    tags: ClassVar[frozenset[str]] = frozenset()

    def norms(self, signals):
        place = torch.arange(signals.tokens) * 0.1
        return (super().norms(signals) + place).masked_fill(~signals.mask, 0)


@dataclass(frozen=True)
class BatchNormalised(Good):
    """Normalises by the largest norm of the batch."""

    name: ClassVar[str] = "batch_normalised"

    def __call__(self, signals):
        norms = self.norms(signals)
        return norms / norms.amax().clamp_min(1e-12)


@dataclass(frozen=True)
class PaddingLeaks(Good):
    """Normalises by the largest norm, padding included."""

    name: ClassVar[str] = "padding_leaks"

    def norms(self, signals):
        return signals["features"].float().norm(dim=2)


@dataclass(frozen=True)
class MutatesSignal(Good):
    """Normalises the caller's features in place."""

    name: ClassVar[str] = "mutates_signal"

    def norms(self, signals):
        signals["features"].mul_(1)
        return super().norms(signals)


@dataclass(frozen=True)
class GlobalRng(Good):
    """Jitters with the global generator."""

    name: ClassVar[str] = "global_rng"
    tags: ClassVar[frozenset[str]] = frozenset()

    def norms(self, signals):
        norms = super().norms(signals)
        return norms + 1e-6 * norms * torch.rand(norms.shape)


@dataclass(frozen=True)
class SeedIgnored(GoodRandom):
    """Has a seed and does not use it."""

    name: ClassVar[str] = "seed_ignored"

    def __call__(self, signals):
        g = torch.Generator().manual_seed(0)
        return torch.rand(signals.tokens, generator=g).expand(signals.batch, -1)


@dataclass(frozen=True)
class WaitsForDevice(Good):
    """Branches on a value."""

    name: ClassVar[str] = "waits_for_device"

    def __call__(self, signals):
        norms = self.norms(signals)
        top = norms.amax(1, keepdim=True)
        return norms / top if bool((top > 0).all()) else norms


@dataclass(frozen=True)
class CubeOfMemory(GoodDistance):
    """Subtracts all tokens from all tokens, `[B,N,N,D]`."""

    name: ClassVar[str] = "cube_of_memory"

    def __call__(self, signals):
        x = signals["features"].float().masked_fill(~signals.mask[:, :, None], 0)
        return (x[:, :, None] - x[:, None]).norm(dim=3)


@dataclass(frozen=True)
class ClaimsSymmetry(GoodKernel):
    """Tagged symmetric, but rows are normalised."""

    name: ClassVar[str] = "claims_symmetry"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric"})

    def __call__(self, signals):
        real = signals.mask[:, None, :]
        return super().__call__(signals).masked_fill(~real, -1e4).softmax(2)


@dataclass(frozen=True)
class ClaimsScaleFree(GoodSmooth):
    """Tagged scale_free, but squares its input."""

    name: ClassVar[str] = "claims_scale_free"
    tags: ClassVar[frozenset[str]] = frozenset({"scale_free"})


@dataclass(frozen=True)
class ReversedKernel(GoodKernel):
    """A distance where a similarity is expected."""

    name: ClassVar[str] = "reversed_kernel"
    tags: ClassVar[frozenset[str]] = frozenset({"symmetric", "scale_free"})

    def __call__(self, signals):
        return 1 - super().__call__(signals)


@dataclass(frozen=True)
class ReversedSign(Good):
    """Small norms score high."""

    name: ClassVar[str] = "reversed_sign"

    def __call__(self, signals):
        return (1 - super().__call__(signals)).masked_fill(~signals.mask, 0)


@dataclass(frozen=True)
class WrongGradient(GoodSmooth):
    """Detaches half of the product."""

    name: ClassVar[str] = "wrong_gradient"

    def __call__(self, signals):
        x = signals["features"]
        x = x if x.dtype == torch.float64 else x.float()
        return (x * x.detach()).sum(2)


@dataclass(frozen=True)
class MassAtPadding(GoodMarginal):
    """Shares mass out over padding too."""

    name: ClassVar[str] = "mass_at_padding"

    def __call__(self, signals):
        return torch.full_like(signals.mask, 1 / signals.tokens, dtype=torch.float32)
