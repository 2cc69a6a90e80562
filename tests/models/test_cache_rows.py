"""Rows of a pruned cache that are moved, chosen or repeated: each keeps its own mask and positions."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_models import llava, llava_scenarios
from torch import Tensor

import pruneopt
from pruneopt.models import cache as cache_module
from pruneopt.models.sequence import Segment
from pruneopt.testing.insertion import ENTRY, LAYER
from pruneopt.testing.insertion_values import _RaggedRule, with_rule
from pruneopt.testing.masking import forward

Move = Callable[[Any], Any]

# how the rows of a cache of three are moved, and which old row stands in each new one
MOVES: dict[str, tuple[Move, list[int]]] = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1]),
    "batch_select_indices": (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
    "batch_repeat_interleave": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "twice": (
        lambda cache: [cache.batch_repeat_interleave(2), cache.reorder_cache(torch.tensor([5, 0, 3]))],
        [2, 0, 1],
    ),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


def steps(model: Any, out: Any, mask: Tensor, rows: list[int]) -> Tensor:
    """Logits `[2,rows,V]` of two decoded tokens after `rows` of the cache were moved."""
    found, tokens = [], torch.tensor([[7], [8], [9]])[rows]
    for step in (1, 2):
        ones = torch.ones(len(rows), step, dtype=torch.long)
        full = torch.cat([mask[rows], ones], 1)
        position = full.sum(1, keepdim=True) - 1
        with torch.no_grad():
            out = model(
                input_ids=tokens,
                attention_mask=full,
                position_ids=position,
                past_key_values=out.past_key_values,
            )
        found.append(out.logits[:, -1])
        tokens = tokens + 3
    return torch.stack(found)


def moved_and_not(model: Any, spec: Any, name: str, copied: bool = False) -> tuple[Tensor, Tensor]:
    """Logits after the rows moved, and the same rows of a run in which nothing moved."""
    inputs, (move, rows) = llava_scenarios()["left"], MOVES[name]
    with pruneopt.prune(model, with_rule(spec, _RaggedRule())):
        still = forward(model, inputs, use_cache=True)
        wanted = steps(model, still, inputs["attention_mask"], [0, 1, 2])[:, rows]
        out = forward(model, inputs, use_cache=True)
        if copied:
            original, out.past_key_values = out.past_key_values, copy.deepcopy(out.past_key_values)
        move(out.past_key_values)
        found = steps(model, out, inputs["attention_mask"], rows)
        if copied:  # the cache that was copied is as it was
            out.past_key_values = original
            again = steps(model, out, inputs["attention_mask"], [0, 1, 2])[:, rows]
            assert torch.equal(again, wanted)
    return found, wanted


@pytest.mark.parametrize("spec", [LAYER, {**ENTRY, "positions": "compact"}], ids=["keep", "compact"])
@pytest.mark.parametrize("name", list(MOVES))
def test_moved_rows_keep_their_own_mask(model: Any, name: str, spec: Any) -> None:
    found, wanted = moved_and_not(model, spec, name)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_a_copied_cache_moves_its_own_rows(model: Any) -> None:
    found, wanted = moved_and_not(model, LAYER, "reorder_cache", copied=True)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_a_dead_cache_is_freed_at_once(model: Any) -> None:
    gc.disable()
    try:
        with pruneopt.prune(model, LAYER):
            out = forward(model, llava_scenarios()["single"], use_cache=True)
            seen = weakref.ref(out.past_key_values)
            del out
            assert seen() is None
    finally:
        gc.enable()


@contextmanager
def rows_not_followed() -> Iterator[None]:
    real = cache_module._METHODS
    moving = [name for name, method in real.items() if method is cache_module._move_rows]
    rows = {name: lambda cache, plain, rows: plain(rows) for name in moving}
    with mock.patch.dict(cache_module._METHODS, rows):
        yield


@contextmanager
def positions_not_followed() -> Iterator[None]:
    real = Segment.take_rows

    def take(self: Segment, rows: Tensor, batch: int) -> Segment:
        found = real(self, rows, batch)
        found.following = self.following
        return found

    with mock.patch.object(Segment, "take_rows", take):
        yield


@pytest.mark.parametrize("bug", [rows_not_followed, positions_not_followed], ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(model: Any, bug: Callable[[], Any]) -> None:
    with bug():
        found, wanted = moved_and_not(model, {**LAYER, "positions": "compact"}, "reorder_cache")
    assert (found - wanted).abs().max() > 1e-3
