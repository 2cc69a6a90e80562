"""Every family: removal equals masking, in every way the conformance suite knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from tiny_batches import ROWS, VIDEOS, anyres, qwen, scenarios, subimages, tiles, typed
from tiny_models import precise, precisely
from torch import nn

from pruneopt.testing.insertion import CHECKS, ENTRY, LAYER, SEVERAL, InsertionCase, check_insertion


def _next(build: Callable[..., Any], videos: bool) -> dict[str, Any]:
    rows = {**ROWS, **(VIDEOS if videos else {})}
    return scenarios(rows, anyres(build(), [(20, 37), (40, 14)], 16, 3 * 2 * 2))


def _onevision(build: Callable[..., Any]) -> dict[str, Any]:
    return scenarios({**ROWS, **VIDEOS}, anyres(build(), [(20, 37), (48, 47)], 16, 3 * 2 * 2 + 1))


def _qwen(build: Callable[..., Any], frames: int = 1) -> dict[str, Any]:
    make = qwen(build(), [(1, 8, 12), (1, 12, 6)], (2, 6, 8))
    return typed(scenarios({**ROWS, **VIDEOS}, make, frames, ([85], [86])))


def _internvl(build: Callable[..., Any]) -> dict[str, Any]:
    return scenarios(ROWS, tiles(build(), [3, 1], 24))


def _idefics(build: Callable[..., Any]) -> dict[str, Any]:
    model, out = build(), {}
    for name, rows in ROWS.items():
        out |= scenarios({name: rows}, lambda media, rows=rows: subimages(model, [3, 1], 24, 9, rows))
    return out


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "llava_next": (tiny_models.llava_next, lambda build: _next(build, False)),
    "llava_next_video": (tiny_models.llava_next_video, lambda build: _next(build, True)),
    "llava_onevision": (tiny_models.llava_onevision, _onevision),
    "qwen2_vl": (tiny_models.qwen2_vl, _qwen),
    "qwen2_5_vl": (tiny_models.qwen2_5_vl, _qwen),
    "qwen3_vl": (tiny_models.qwen3_vl, lambda build: _qwen(build, 2)),
    "internvl": (tiny_models.internvl, _internvl),
    "idefics3": (tiny_models.idefics3, _idefics),
    "smolvlm": (tiny_models.smolvlm, _idefics),
}


def _text(model: Any) -> nn.Module:
    base = model.model
    return base.text_model if hasattr(base, "text_model") else base.language_model


@cache
def case(name: str) -> InsertionCase:
    """All batches of a family, one and several cuts; the suite's other cuts run on LLaVA-1.5."""
    build, make = FAMILIES[name]
    found = precisely(make(build))
    del found["single"]
    layers: Any = lambda model: _text(model).layers  # noqa: E731
    return InsertionCase(
        name, precise(build), found, decoder=layers, text=_text, specs=(ENTRY, SEVERAL), attention=("sdpa",)
    )


def brief(name: str) -> InsertionCase:
    """The first padded batch, and the video where there is one."""
    whole = case(name)
    few = {key: inputs for key, inputs in whole.scenarios.items() if key in ("left", "video")}
    return replace(whole, scenarios=few)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_removal_equals_masking(family: str) -> None:
    [result] = check_insertion(case(family), ["oracle"])
    assert result.problem == ""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_removal_equals_masking_with_eager_attention(family: str) -> None:
    build, make = FAMILIES[family]  # in float32, in which eager attention takes its softmax
    few = {key: inputs for key, inputs in make(build).items() if key in brief(family).scenarios}
    eager = replace(brief(family), build=build, scenarios=few, attention=("eager",), specs=(SEVERAL,))
    [result] = check_insertion(eager, ["oracle"])
    assert result.problem == ""


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("oracle", "rows_alone")])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_family_passes(family: str, check: str) -> None:
    tested = brief(family)
    if check == "modes":  # older transformers mix up the images of a sample when they repeat it for beams
        tested = replace(tested, scenarios={"text_row": case(family).scenarios["text_row"]})
    [result] = check_insertion(tested, [check])
    assert result.problem == ""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_equal_themselves_alone(family: str) -> None:
    """The batch of three against its first row alone, whose inputs are those of the single batch."""
    build, make = FAMILIES[family]
    found = precisely(make(build))
    rows = {"left": [found["single"]]} if _same_picture(found) else {}
    [result] = check_insertion(replace(brief(family), rows=rows), ["rows_alone"])
    assert result.problem == ""


def _same_picture(found: dict[str, Any]) -> bool:
    """Whether the first row of `left` is the prompt of `single` (pixels are drawn in order)."""
    left, single = found["left"], found["single"]
    real = left["attention_mask"][0].bool()
    return bool((left["input_ids"][0][real] == single["input_ids"][0]).all())


def test_bfloat16_stays_within_its_rounding() -> None:
    build, make = FAMILIES["qwen2_5_vl"]
    half = InsertionCase(
        "bfloat16",
        lambda attention: build(attention).to(torch.bfloat16),
        {"left": {k: v.bfloat16() if v.is_floating_point() else v for k, v in make(build)["left"].items()}},
        specs=(LAYER,),
        attention=("sdpa",),
    )
    [result] = check_insertion(half, ["oracle"])
    assert result.problem == ""
