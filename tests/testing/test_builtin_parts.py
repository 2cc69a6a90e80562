"""Every part that ships with pruneopt passes every check that applies to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruneopt.parts import Part
from pruneopt.registry import registry
from pruneopt.testing import parametrize_with_checks

GROUPS = ("costs", "scores", "kernels", "marginals", "solvers", "readouts", "steps", "budgets", "insertions")
_FOLDER = tempfile.TemporaryDirectory()
_CODEBOOK = Path(_FOLDER.name) / "codebook.safetensors"


def _codebook(width: int) -> str:
    """A codebook file; the suite varies the width of the signals, a codebook cannot."""
    path = Path(_FOLDER.name) / f"codebook{width}.safetensors"
    save_file({"prototypes": torch.randn(5, width, generator=torch.Generator().manual_seed(0))}, path)
    return str(path)


# Parts without defaults for all parameters, and those whose defaults do nothing.
PARAMETERS = {
    "score_threshold": {"bound": 0.5},
    "prototype": {"codebook": _codebook(8)},
}
_WIDTH = "reads a file made for one width"
EXPECTED = {
    "sliced": {"check_dtype": "sorts tokens: rounding that swaps two of them moves their mass"},
    "prototype": dict.fromkeys(
        ("check_shapes", "check_half_precision_ranks_alike", "check_memory_order"), _WIDTH
    ),
    "dart_pivots": {
        "check_beats_random": "DART's quotas are no better than chance for dispersion (docs/selection.md)"
    },
}


def _parts() -> list[Part]:
    out = []
    for group in GROUPS:
        for name in registry(group):
            entry = registry(group)
            if entry._claims[name][0].target.startswith("pruneopt."):
                out.append(entry.get(name).from_spec(PARAMETERS.get(name, {})))
    return out


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(_parts(), EXPECTED)
def test_builtin_part(part, check):
    check(part)
    assert part.name


def test_every_group_is_covered():
    kinds = {type(part).__module__.split(".")[2] for part in _parts()}
    assert {g.removesuffix("s") for g in kinds} >= {g.removesuffix("s") for g in GROUPS}
