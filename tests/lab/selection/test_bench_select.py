"""The selection and gap benchmarks measure what they say and render only what was recorded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.gap.run import GREEDY
from pruneopt.lab.gap.table import summary
from pruneopt.lab.gap.table import tables_of as gap_tables
from pruneopt.lab.records import read_record
from pruneopt.lab.selection.run import Plan, measure
from pruneopt.lab.selection.signals import select_signals
from pruneopt.lab.study import study
from pruneopt.lab.tables import Table
from pruneopt.spec.load import load_spec

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "experiments" / "records" / "select"


def test_a_small_run_records_every_stage(tmp_path: Path) -> None:
    methods = ["fastervlm", "trimtokenator", "codebook", "divprune/exact"]
    plan = Plan(methods, (36, 64), batch=1, keep=8, repeats=1, budget=0.1)
    measure(plan, tmp_path, console=Console(quiet=True))
    record = read_record(tmp_path / "select.json")
    rows = {(row["method"], row["stage"]): row for row in record["rows"]}
    assert set(rows) == {
        ("fastervlm", 0), ("trimtokenator", 0), ("trimtokenator", 1), ("codebook", 0), ("divprune/exact", 0)
    }  # fmt: skip
    assert rows["fastervlm", 0]["kept"] == [8] and rows["fastervlm", 0]["ms"] > 0
    assert "codebook" in rows["codebook", 0]["skipped"]
    assert math.isfinite(rows["trimtokenator", 1]["exponent"])
    text = study("selection").markdown(tmp_path)
    assert text.count("\n| ") == len(rows) + 1 and "fastervlm" in text


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="fastv"):
        Plan(["fastvv"])
    with pytest.raises(InputError, match="nothing to choose"):
        Plan(sizes=(16, 64), keep=64)


def test_bench_signals_are_what_the_stage_reads() -> None:
    for method in ("prumerge/release", "aim/prune", "sparsevlm/plus"):
        for stage in load_spec(method).stages:
            signals = select_signals(stage.needs, batch=1, tokens=36)
            assert stage.needs <= set(signals) and signals.tokens == 36


def row(**changes: object) -> dict:
    base = {
        "label": "x", "method": "divprune", "problem": "p", "kind": "max_min", "tokens": 4, "keep": 2,
        "exact": True, "status": ["OPTIMAL", "TIME_LIMIT"], "value": [1.0, 2.0], "best": [1.0, 4.0],
        "random": [0.5, 1.0],
        "known": [1.0, 4.0], "bound": [1.0, 5.0], "seconds": 0.25,
    }  # fmt: skip
    return base | changes


def test_gaps_are_shares_of_the_best() -> None:
    found = summary(row())
    assert found["relative"] == pytest.approx(0.25) and found["relative_worst"] == pytest.approx(0.5)
    assert found["optimal"] == 1 and found["proved"] == 1
    assert found["gained"] == pytest.approx((1 + 1 / 3) / 2)


def test_a_missing_bound_is_shown_as_missing_not_as_zero() -> None:
    setting = {"pictures": 2, "random_seeds": 5}
    table, _ = gap_tables({"setting": setting, "rows": [row(best=[None, None], exact=False)]})
    assert isinstance(table, Table) and "no bound" in table.rows[0] and table.rows[0].count("-") >= 3


def test_committed_records_cover_all_methods() -> None:
    gap = read_record(RECORDS / "gap.json")
    assert {r["label"] for r in gap["rows"]} == {greedy.label for greedy in GREEDY}
    for r in gap["rows"]:
        for value, best in zip(r["value"], r["best"], strict=True):
            assert value is None or best is None or value <= best + 1e-6 * max(1.0, abs(best))
    select = read_record(RECORDS / "select.json")
    assert {r["method"] for r in select["rows"]} >= {"fastv", "divprune", "sparsevlm", "vitcop", "tome"}
