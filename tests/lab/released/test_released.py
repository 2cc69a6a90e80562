"""Released rules decide as their specs do, and the verdicts on speed are those of the record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.records import read_record
from pruneopt.lab.released import run
from pruneopt.lab.released.run import RELEASES, Plan, Release, cell, measure, ours
from pruneopt.lab.released.table import slower, tables_of, verdicts
from pruneopt.lab.study import study
from pruneopt.spec.load import list_methods, load_spec

TOKENS, KEEP = 256, 32


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.method)
@pytest.mark.parametrize("batch", [2])
def test_the_release_and_its_spec_keep_and_merge_the_same(release: Release, batch: int) -> None:
    spec = release.spec(TOKENS, KEEP)
    signals = release.signals(spec, batch=batch, tokens=TOKENS)
    kept, tokens = ours(spec, signals)
    wanted, built = release.rule(signals, release.count(TOKENS, KEEP))
    assert [row.tolist() for row in kept] == [row.tolist() for row in wanted]
    assert len(tokens) == len(built) and min(map(len, kept)) < (release.crops + 1) * TOKENS
    for mine, theirs in zip(tokens, built, strict=True):  # each in an order of its own
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine.sum(0), theirs.sum(0), rtol=0, atol=2e-3)
        torch.testing.assert_close(mine.square().sum(), theirs.square().sum(), rtol=1e-4, atol=0)


def test_every_method_with_code_has_its_rule() -> None:
    released = {name.split("/")[0] for name in (release.method for release in RELEASES)}
    names = {name for name in list_methods() if "/" not in name} - {"codebook"}  # whose rule needs a file
    repositories = {name for name in names if "/" in str(load_spec(name).meta["code"])}
    assert repositories <= released and len(repositories) > 5


def row(method: str, batch: int, theirs: float, mine: float) -> dict:
    return {
        "method": method, "batch": batch, "same": batch, "turns": 3, "kept": [4] * batch,
        "ours_ms": mine, "theirs_ms": theirs, "select_ms": mine / 2,
    }  # fmt: skip


def record(**changes: object) -> dict:
    base = {
        "machine": {"threads": 1, "device": "cpu", "packages": {"torch": "2"}},
        "setting": {"tokens": 576, "keep": 64, "batches": [1, 8], "width": 4096},
        "rows": [row("a", 1, 4.0, 2.0), row("b", 1, 1.0, 2.0), row("a", 8, 9.0, 4.0), row("b", 8, 4.0, 4.0)],
        "fixed_ms": 0.2,
        "starts": {"list": 2.6, "torch": 2.0},
    }
    return base | changes


def test_verdicts_are_those_of_the_numbers() -> None:
    assert verdicts(record()) == [
        "geometric mean at batch 1: 1, asked 1: met",
        "the same where our merge weights are not multiplied out: 2",
        "geometric mean at batch 8: 1.5, asked 1.5: met",
        "the same where our merge weights are not multiplied out: 3",
        "no method below 0.7 unless it takes less than 0.15 ms: missed by b x 1 (0.50)",
        "milliseconds of `select` that are not arithmetic: 0.2, asked 0.3: met",
        "`pruneopt list` over `import torch`: 1.3, asked 1.3: met",
    ]
    late = verdicts(record(rows=[row("a", 1, 1.0, 1.01), row("a", 8, 1.0, 1.0)], fixed_ms=0.31))
    assert [line.endswith("missed") for line in late] == [True, False, True, False, False, True, False]


def test_short_rules_may_be_slower() -> None:
    rows = [row("a", 1, 0.1, 0.5), row("b", 1, 0.16, 0.5), row("c", 1, 0.16, 0.2)]
    assert [found["method"] for found in slower(rows)] == ["b"]


def test_the_table_shows_both_sides_of_every_method() -> None:
    table = tables_of(record())[0]
    assert table.rows[1] == ["b", "1.00", "2.00", "0.50", "all", "4.00", "4.00", "1.00", "all"]
    assert len(table.rows) == 2 and len(table.header) == 9
    some = record(rows=[{**found, "same": 0} for found in record()["rows"]])
    assert tables_of(some)[0].rows[0][4] == "0 of 1"


def test_a_small_run_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "starts", lambda times: {"list": 1.0, "torch": 1.0})
    plan = Plan(["fastervlm"], tokens=36, keep=8, batches=(1,), seconds=0.0)
    measure(plan, tmp_path, console=Console(quiet=True))
    found = read_record(tmp_path / "released.json")
    (only,) = found["rows"]
    assert only["same"] == 1 and only["kept"] == [8] and 0 < found["fixed_ms"] < 1e4
    assert "fastervlm" in study("released").markdown(tmp_path)


def test_a_method_without_a_rule_is_refused() -> None:
    with pytest.raises(InputError, match="fastv"):
        Plan(["fastvv"])


def test_a_rule_that_keeps_other_tokens_is_seen() -> None:
    def wrong(signals, keep):
        kept = [torch.arange(keep) for _ in signals["cls_attention"]]
        return kept, []

    found = cell(Release("fastervlm", wrong), Plan(tokens=36, keep=8, seconds=0.0), batch=2)
    assert found["same"] == 0
