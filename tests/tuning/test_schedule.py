"""Budgets solved from a target, against the numbers that papers print and against a real run."""

from __future__ import annotations

import pytest
from tiny_models import llava, llava_scenarios

import pruneopt
from pruneopt.errors import SpecError
from pruneopt.models.base import adapter_for
from pruneopt.models.report import Shape, shape_of
from pruneopt.spec.load import load_spec
from pruneopt.testing.insertion import LAYER, SEVERAL
from pruneopt.testing.masking import forward
from pruneopt.tuning.schedule import achieved, solve_keep

LLAVA_7B = Shape(layers=32, width=4096, queries=4096, keys=4096, mlp=11008, bytes=2)


def test_closed_form_equals_printed_numbers() -> None:
    """LLaVA-1.5-7B, 576 tokens: 3.82 T dense; FastV K=2 R=50% 2.01 T; PyramidDrop 1.78 T, mean 270."""
    dense = 32 * LLAVA_7B.flops(576)
    assert dense == pytest.approx(3.82e12, rel=2e-3)
    fastv = achieved(load_spec("fastv"), LLAVA_7B, visual=576, text=0)
    assert fastv.flops_share * dense == pytest.approx(2.01e12, rel=3e-3)
    layers = {"kind": "prefill_layer", "layer": [8, 16, 24]}
    pyramid = achieved(
        load_spec({**LAYER, "insertion": layers, "budget": {"keep": [0.5, 0.25, 0.125]}}),
        LLAVA_7B,
        visual=576,
        text=0,
    )
    assert pyramid.kept == (288, 144, 72) and pyramid.layer_mean == 270
    assert pyramid.flops_share * dense == pytest.approx(1.78e12, rel=3e-3)


def test_layer_mean_of_the_fastv_card() -> None:
    """To hit a mean of 192, 128 or 64 with K=2 of 32 layers, FastV keeps 166.4, 98.1 or 29.9."""
    for mean, kept in ((192, 166), (128, 98), (64, 29)):
        spec = solve_keep(load_spec("fastv"), LLAVA_7B, visual=576, text=0, target={"layer_mean": mean})
        assert achieved(spec, LLAVA_7B, visual=576, text=0).kept == (kept,)


@pytest.mark.parametrize("target", [{"flops_share": 0.6}, {"kv_share": 0.7}, {"layer_mean": 20.0}])
def test_solved_budgets_hold_in_a_real_run(target: dict[str, float]) -> None:
    model, inputs = llava(), llava_scenarios()["single"]
    shape, text = shape_of(adapter_for(model)), inputs["input_ids"].shape[1] - 36
    spec = solve_keep(load_spec(SEVERAL), shape, visual=36, text=text, target=target)
    with pruneopt.prune(model, spec) as run:
        forward(model, inputs, use_cache=True)
    closed = achieved(spec, shape, visual=36, text=text)
    name, wanted = next(iter(target.items()))
    assert run.report.flops_share == pytest.approx(closed.flops_share)
    assert run.report.cache_share == pytest.approx(closed.kv_share)
    assert run.report.layer_mean_tokens == [pytest.approx(closed.layer_mean)]
    assert wanted - 0.08 * wanted < getattr(closed, name) <= wanted


def test_targets_out_of_reach_are_refused() -> None:
    with pytest.raises(SpecError, match="cannot be met"):
        solve_keep(load_spec("fastv"), LLAVA_7B, visual=576, text=0, target={"flops_share": 0.01})
    with pytest.raises(SpecError, match="one target"):
        solve_keep(load_spec("fastv"), LLAVA_7B, visual=576, text=0, target={"speed": 2.0})
