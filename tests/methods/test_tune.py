"""The outer tuner finds optima, respects budgets, and steers a live model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruneopt.errors import InputError, SpecError
from pruneopt.eval.tune import meet_layer_mean, tune
from pruneopt.spec import Spec, load_spec

SPACE = {
    "stages.0.problem.scores.relevance.threshold": (0.0, 50.0),
    "stages.0.steps.0.cell": (3.0, 24.0),
}


def bowl(spec: Spec) -> float:
    """Largest, 0, at a threshold of 20 and a cell of 10."""
    first = spec.stages[0]
    relevance = next(s.part for s in first.problem.scores if s.label == "relevance")
    return -(((relevance.threshold - 20) / 50) ** 2) - ((first.steps[0].cell - 10) / 21) ** 2


def test_tuning_beats_random_search_on_a_bowl() -> None:
    pytest.importorskip("sklearn")
    found = tune("vflowopt", SPACE, bowl, calls=30, initial=10, seed=1)
    generator = np.random.default_rng(0)
    chance = [
        max(-((a - 0.4) ** 2) - (b - 1 / 3) ** 2 for a, b in generator.random((30, 2))) for _ in range(20)
    ]
    assert found.value > np.mean(chance)
    assert found.value > -2e-3
    assert len(found.trials) == 30 and found.value == max(v for _, v in found.trials)
    assert bowl(found.spec) == pytest.approx(found.value, abs=1e-4)


def test_infeasible_and_nan_trials_are_passed_over() -> None:
    pytest.importorskip("sklearn")

    def half(spec: Spec) -> float:
        value = bowl(spec)
        return math.nan if value < -0.1 else value

    assert tune("vflowopt", SPACE, half, calls=16, seed=3).value <= 0
    with pytest.raises(InputError, match="feasible"):
        tune("vflowopt", SPACE, lambda spec: math.nan, calls=4)


def test_bad_spaces_are_refused() -> None:
    with pytest.raises(SpecError):
        tune("vflowopt", {}, bowl)
    with pytest.raises(SpecError):
        tune("vflowopt", {"stages.0.steps.0.cell": (5.0, 5.0)}, bowl)


@pytest.mark.parametrize(
    ("method", "share"), [("vflowopt", 0.5008), ("vflowopt/quarter", 0.2507), ("vflowopt/tenth", 0.100)]
)
def test_the_budget_of_the_presets_is_met_by_their_last_ratio(method: str, share: float) -> None:
    """The published presets satisfy the formula of the card, so solving it returns their last ratio."""
    spec = load_spec(method)
    (override,) = meet_layer_mean(share, 28)(spec)
    key, value = override.split("=")
    assert key == "stages.2.budget.keep"
    assert float(value) == pytest.approx(spec.stages[2].budget.keep, abs=6e-3)


def test_a_budget_out_of_reach_says_so() -> None:
    with pytest.raises(SpecError, match="layer mean"):
        meet_layer_mean(0.99, 28)(load_spec("vflowopt/tenth"))


@pytest.mark.slow
def test_tuning_keeps_more_of_the_hidden_state_of_the_embedded_model() -> None:
    pytest.importorskip("sklearn")
    from pruneopt.demo.assets import load_inputs, load_model, samples
    from pruneopt.eval.tune import final_state_cosine

    model, processor = load_model()
    batches = [load_inputs(samples()[:2], processor)]
    objective = final_state_cosine(model, batches)
    space = {"problem.scores.attention.weight": (-1.0, 1.0)}
    overrides = ["insertion.layer=1", "budget.keep=0.25"]
    base = load_spec("fastv", overrides)
    found = tune(base, space, objective, calls=5, initial=4, seed=0)
    assert -1 <= found.value <= 1 + 1e-6
    assert found.value >= max(v for _, v in found.trials) - 1e-9
    assert objective(load_spec(base, ["budget.keep=1.0"])) == pytest.approx(1.0, abs=1e-4)
