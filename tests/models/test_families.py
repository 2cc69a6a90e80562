"""Every family: removal equals masking, in every way the conformance suite knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny_models
from tiny_batches import ROWS, VIDEOS, anyres, qwen, scenarios, subimages, tiles, typed
from torch import nn

from pruneopt.testing.insertion import CHECKS, InsertionCase, check_insertion


def _next(build: Callable[..., Any], videos: bool) -> dict[str, Any]:
    rows = {**ROWS, **(VIDEOS if videos else {})}
    return scenarios(rows, anyres(build(), [(20, 37), (40, 14)], 16))


def _onevision(build: Callable[..., Any]) -> dict[str, Any]:
    return scenarios({**ROWS, **VIDEOS}, anyres(build(), [(20, 37), (48, 47)], 16))


def _qwen(build: Callable[..., Any], frames: int = 1) -> dict[str, Any]:
    make = qwen(build(), [(1, 8, 12), (1, 12, 6)], (2, 6, 8))
    return typed(scenarios({**ROWS, **VIDEOS}, make, frames))


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
    build, make = FAMILIES[name]
    return InsertionCase(
        name,
        build,
        make(build),
        decoder=lambda model: _text(model).layers,
        text=_text,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("check", list(CHECKS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_family_passes(family: str, check: str) -> None:
    [result] = check_insertion(case(family), [check])
    assert result.problem == ""
