"""Every insertion check must catch the bug that it is named for, and pass the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from test_llava import CASE as WHOLE

import pruneopt
from pruneopt.models import columns, decode, hooks, prefill, report, sequence, store
from pruneopt.models.prompt import Prompt
from pruneopt.problems.budget import Budget
from pruneopt.testing.insertion import CHECKS, ENTRY, LAYER, check_insertion

SCENARIOS = {name: inputs for name, inputs in WHOLE.scenarios.items() if name in ("single", "left")}
CASE = replace(WHOLE, scenarios=SCENARIOS, specs=(ENTRY, LAYER), attention=("sdpa",))


@contextmanager
def handle_never_removed() -> Iterator[None]:
    with mock.patch.object(hooks.Attachments, "remove", lambda self: None):
        yield


@contextmanager
def one_hook_forgotten() -> Iterator[None]:
    real = hooks.Attachments.remove

    def remove(self: Any) -> None:
        self._undo = self._undo[1:]
        real(self)

    with mock.patch.object(hooks.Attachments, "remove", remove):
        yield


@contextmanager
def off_by_one_layer() -> Iterator[None]:
    """Tokens go one layer before the one that is reported."""
    real = prefill.Cut.of

    def of(*given: Any, **more: Any) -> Any:
        cut = real(*given, **more)
        return replace(cut, layer=cut.layer + 1)

    with mock.patch.object(prefill.Cut, "of", of):
        yield


@contextmanager
def decode_position_too_low() -> Iterator[None]:
    """Decoding continues from the pruned length."""

    def text(self: Any, args: Any, kwargs: Any) -> Any:
        removed = self.state.columns - self.state.segments[-1].width
        return args, {**kwargs, "position_ids": kwargs["position_ids"] - removed}

    with mock.patch.object(decode.Decode, "text_starts", text):
        yield


@contextmanager
def text_dropped() -> Iterator[None]:
    """The first text token after the picture goes as well."""
    real = columns.survivors

    def survivors(alive: torch.Tensor, width: int) -> torch.Tensor:
        alive = alive.clone()
        alive[:, -3] = False
        return real(alive, width)

    with mock.patch.object(columns, "survivors", survivors):
        yield


@contextmanager
def rotary_not_gathered() -> Iterator[None]:
    real = prefill.Prefill._reposition

    def reposition(self: Any, stage: Any, move: Any, *, hidden: torch.Tensor) -> None:
        first = self.rotary
        real(self, stage, move, hidden=hidden)
        shape = hidden.shape
        self.rotary = tuple(part[:, : shape[1]].expand(shape[0], -1, -1) for part in first)

    with mock.patch.object(prefill.Prefill, "_reposition", reposition):
        yield


@contextmanager
def padding_visible() -> Iterator[None]:
    real = sequence.segment_mask

    def everything(adapter: Any, segment: Any, *, hidden: Any, past: int, tail: Any) -> Any:
        return real(adapter, replace(segment, full=True), hidden=hidden, past=past, tail=None)

    with mock.patch.object(prefill, "segment_mask", everything):
        yield


@contextmanager
def masked_not_removed() -> Iterator[None]:
    """Reports the closed form of a cache that still holds everything."""
    real = report.measure

    def measure(adapter: Any, state: Any, *, cache: Any) -> Any:
        found = real(adapter, state, cache=cache)
        return replace(found, cache_found=[n + 8 for n in found.cache_found])

    with mock.patch.object(prefill, "measure", measure):
        yield


@contextmanager
def mlp_not_counted() -> Iterator[None]:
    real = report.Shape.flops
    with mock.patch.object(
        report.Shape, "flops", lambda self, n: real(self, n) - 3.0 * n * self.width * self.mlp
    ):
        yield


@contextmanager
def batch_mate_decides() -> Iterator[None]:
    """Selection looks at the number of rows of the batch."""
    real = store.SignalStore.signals

    def signals(self: Any, stage: Any, columns: Any, *, hidden: Any) -> Any:
        found = real(self, stage, columns, hidden=hidden)
        return found if len(columns.valid) == 1 else _rolled(found)

    with mock.patch.object(store.SignalStore, "signals", signals), _spread_scores():
        yield


def _rolled(signals: Any) -> Any:
    signals._tensors["features"] = signals._tensors["features"].roll(1, 1)
    return signals


@contextmanager
def _spread_scores() -> Iterator[None]:
    from pruneopt.parts.scores.random import RandomScore

    with mock.patch.object(RandomScore, "__call__", lambda self, s: s["features"].float().norm(dim=2)):
        yield


@contextmanager
def one_token_too_few() -> Iterator[None]:
    """A ratio of 1 keeps all but one."""
    real = Budget.count
    with mock.patch.object(Budget, "count", lambda self, start, alive: max(1, real(self, start, alive) - 1)):
        yield


@contextmanager
def state_leaks_between_prompts() -> Iterator[None]:
    """The second prompt reuses the kept set of the first, shifted by one."""
    real = prefill.Prefill._select
    calls = [0]

    def select(self: Any, *given: Any, **more: Any) -> Any:
        calls[0] += 1
        selection = real(self, *given, **more)
        return replace(selection, keep=selection.keep.roll(1, 1)) if calls[0] % 2 == 0 else selection

    with mock.patch.object(prefill.Prefill, "_select", select):
        yield


@contextmanager
def static_cache_accepted() -> Iterator[None]:
    from pruneopt.models import refuse

    kept = tuple(row for row in refuse._REFUSED if row[0] != "prompt_lookup_num_tokens")
    with mock.patch.object(refuse, "_REFUSED", kept):
        yield


@contextmanager
def counts_taken_from_the_first_row() -> Iterator[None]:
    """Ragged rows are cut to the count of the first."""
    with mock.patch.object(columns.Columns, "full", True):
        yield


@contextmanager
def wrong_placeholder() -> Iterator[None]:
    """The first visual token counts as text, as with a span that starts one too late."""
    real = Prompt.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.place = self.place + 1

    with mock.patch.object(Prompt, "__init__", init):
        yield


# planted bug -> the check that is there for it
PLANTED: dict[Callable[[], Any], str] = {
    handle_never_removed: "restore",
    one_hook_forgotten: "restore",
    off_by_one_layer: "oracle",
    decode_position_too_low: "oracle",
    text_dropped: "oracle",
    rotary_not_gathered: "deletion",
    padding_visible: "oracle",
    masked_not_removed: "counts",
    mlp_not_counted: "counts",
    batch_mate_decides: "rows_alone",
    one_token_too_few: "keep_all",
    state_leaks_between_prompts: "deletion",
    static_cache_accepted: "modes",
    counts_taken_from_the_first_row: "ragged",
    wrong_placeholder: "oracle",
}


@pytest.mark.parametrize("bug", list(PLANTED), ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(bug: Callable[[], Any]) -> None:
    with bug():
        [result] = check_insertion(CASE, [PLANTED[bug]])
    assert result.problem != "" and not result.problem.startswith("refused")


@pytest.mark.parametrize("check", list(CHECKS))
def test_every_check_catches_something_and_passes_the_real_thing(check: str) -> None:
    assert check in PLANTED.values()
    [result] = check_insertion(CASE, [check])
    assert result.problem == ""


def test_a_foreign_apply_is_tested_as_given() -> None:
    """A case with another `apply` sees that one: here one that does nothing."""

    class Idle:
        def __init__(self, model: Any) -> None:
            self.run = pruneopt.apply(model, ENTRY)
            self.run.remove()

        def remove(self) -> None:
            pass

    case = replace(CASE, apply=lambda model, spec: Idle(model))
    with pytest.raises(AttributeError):
        check_insertion(case, ["oracle"])
