"""`list`, `show`, `plugins`, and the exit codes of refusals."""

from __future__ import annotations

import pytest

from pruneopt.cli.main import main
from pruneopt.registry import GROUPS


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


@pytest.mark.parametrize("kind", ["methods", *GROUPS])
def test_every_kind_is_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", kind) == 0
    out = capsys.readouterr().out
    wanted = {"methods": "topv", "costs": "feature_sq_l2", "insertions": "prefill_layer", "models": "llava"}
    assert wanted.get(kind, "") in out
    assert len(out.splitlines()) > 3


def test_show_prints_the_resolved_spec_signals_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "topv", "budget.keep=0.25") == 0
    out = capsys.readouterr().out
    for words in ("keep: 0.25", "attention need: none", "post_attention_norm", "[B,N,D]", "2503.18278"):
        assert words in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "topvv"], "did you mean 'topv'"),
        (["show", "topv", "budget.kep=1"], "did you mean 'keep'"),
        (["show", "topv", "budget.keep=0"], "budget.keep must be above 0"),
        (["show", "topv", "budget.keep=1.5"], "budget.keep above 1 must be a whole count"),
        (["list", "cost"], "did you mean 'costs'"),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("nosuch") == 2
    assert call("run") == 2
    assert "--model" in capsys.readouterr().err


def test_plugins_lists_built_ins_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plugins", "--all") == 0
    assert "central_distance" in capsys.readouterr().out
