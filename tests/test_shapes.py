"""Shapes in annotations: every part says them, the tests check them, nobody else pays for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from pruneopt.parts.scores.token_norm import TokenNormScore
from pruneopt.registry import registry
from pruneopt.signals import Signals

_WITH_SHAPES = ("costs", "scores", "kernels", "marginals", "readouts", "budgets")
_PARTS = [(group, name) for group in _WITH_SHAPES for name in registry(group)]
_WRONG = """
import sys, torch
from pruneopt.parts.scores.token_norm import TokenNormScore
print(list(TokenNormScore()({"features": torch.ones(2, 3, 4, 1)}).shape), "beartype" in sys.modules)
"""


@pytest.mark.parametrize(("group", "name"), _PARTS)
def test_a_part_says_what_shape_it_returns(group: str, name: str) -> None:
    assert "[Tensor, " in registry(group).get(name).__call__.__annotations__["return"]


def test_a_right_shape_passes() -> None:
    found = TokenNormScore()(Signals({"features": torch.ones(2, 3, 4)}))
    assert found.tolist() == [[2.0] * 3] * 2


def test_a_planted_wrong_shape_is_caught() -> None:
    with pytest.raises(TypeCheckError, match=r"TokenNormScore\.__call__"):
        TokenNormScore()({"features": torch.ones(2, 3, 4, 1)})  # type: ignore[arg-type]


def test_what_a_function_refuses_it_refuses_in_its_own_words() -> None:
    with pytest.raises(KeyError, match="features"):
        TokenNormScore()({})  # type: ignore[arg-type]


def test_outside_of_tests_nothing_is_checked() -> None:
    done = subprocess.run([sys.executable, "-c", _WRONG], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 3, 1] False"


def test_to_import_pruneopt_is_to_import_no_shapes() -> None:
    words = "import sys, pruneopt; print([name for name in ('torch', 'jaxtyping') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
