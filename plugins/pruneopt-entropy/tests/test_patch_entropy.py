"""The term against closed forms."""

from __future__ import annotations

import torch
from pruneopt_entropy.patch_entropy import PatchEntropy

from pruneopt.signals import Signals


def patches(*kinds: str) -> Signals:
    ramp = torch.linspace(0, 1, 16).view(1, 4, 4).expand(3, -1, -1)
    made = {"flat": torch.zeros(3, 4, 4), "ramp": ramp, "halves": (ramp > 0.5).float()}
    return Signals({"patches": torch.stack([made[k] for k in kinds])[None]})


def test_flat_costs_most_and_a_full_ramp_least() -> None:
    cost = PatchEntropy(bins=16)(patches("flat", "halves", "ramp"))[0]
    assert torch.allclose(cost, torch.tensor([1.0, 0.75, 0.0]), atol=1e-6)


def test_scale_and_shift_of_the_pixels_do_not_matter() -> None:
    signals = patches("flat", "halves", "ramp")
    moved = Signals({"patches": signals["patches"] * 5 - 2})
    assert torch.allclose(PatchEntropy()(signals), PatchEntropy()(moved), atol=1e-6)
