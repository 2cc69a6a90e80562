"""The selection and gap benchmarks measure what they say and render only what was recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.gap.run import GREEDY, gap_markdown, gap_rows, summary, write_tables
from pruneopt.lab.selection.run import run_select_bench, select_markdown
from pruneopt.lab.selection.signals import select_signals
from pruneopt.spec.load import load_spec

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "experiments" / "records" / "select"


def test_a_small_run_records_every_stage(tmp_path: Path) -> None:
    methods = ["fastervlm", "trimtokenator", "codebook", "divprune/exact"]
    quiet = Console(quiet=True)
    path = run_select_bench(
        tmp_path, methods, (36, 64), batch=1, keep=8, repeats=1, budget=0.1, console=quiet
    )
    record = json.loads(path.read_text())
    rows = {(row["method"], row["stage"]): row for row in record["rows"]}
    assert set(rows) == {
        ("fastervlm", 0), ("trimtokenator", 0), ("trimtokenator", 1), ("codebook", 0), ("divprune/exact", 0)
    }  # fmt: skip
    assert rows["fastervlm", 0]["kept"] == [8] and rows["fastervlm", 0]["ms"] > 0
    assert "codebook" in rows["codebook", 0]["skipped"]
    assert math.isfinite(rows["trimtokenator", 1]["exponent"])
    text = select_markdown(record)
    assert text.count("\n| ") == len(rows) + 1 and "fastervlm" in text


def test_unknown_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fastv"):
        run_select_bench(tmp_path, ["fastvv"])


def test_bench_signals_are_what_the_stage_reads() -> None:
    for method in ("prumerge/release", "aim/prune", "sparsevlm/plus"):
        for stage in load_spec(method).stages:
            signals = select_signals(stage.needs, 1, 36)
            assert stage.needs <= set(signals) and signals.tokens == 36


def row(**changes: object) -> dict:
    base = {
        "label": "x", "method": "divprune", "problem": "p", "kind": "max_min", "tokens": 4, "keep": 2,
        "exact": True, "status": ["OPTIMAL", "TIME_LIMIT"], "value": [1.0, 2.0], "best": [1.0, 4.0],
        "random": [0.5, 1.0],
    }  # fmt: skip
    return base | changes


def test_gaps_are_shares_of_the_best() -> None:
    found = summary(row())
    assert found["relative"] == pytest.approx(0.25) and found["relative_worst"] == pytest.approx(0.5)
    assert found["optimal"] == 1 and found["proved"] == 1
    assert found["gained"] == pytest.approx((1 + 1 / 3) / 2)


def test_a_missing_bound_is_shown_as_missing_not_as_zero() -> None:
    _, body = gap_rows({"rows": [row(best=[None, None], exact=False)]})
    assert "no bound" in body[0] and body[0].count("-") >= 3


def test_committed_tables_are_what_the_records_say() -> None:
    for name, render in (("gap", gap_markdown), ("select", select_markdown)):
        record = json.loads((RECORDS / f"{name}.json").read_text())
        text = render(record)
        assert (RECORDS / f"{name}.md").read_text() == text + "\n"
        assert text in (ROOT / "docs" / "selection.md").read_text()
    assert gap_markdown(json.loads((RECORDS / "gap.json").read_text())) in (ROOT / "README.md").read_text()


def test_committed_records_cover_all_methods() -> None:
    gap = json.loads((RECORDS / "gap.json").read_text())
    assert {r["label"] for r in gap["rows"]} == {greedy.label for greedy in GREEDY}
    for r in gap["rows"]:
        for value, best in zip(r["value"], r["best"], strict=True):
            assert value is None or best is None or value <= best + 1e-6 * max(1.0, abs(best))
    select = json.loads((RECORDS / "select.json").read_text())
    assert {r["method"] for r in select["rows"]} >= {"fastv", "divprune", "sparsevlm", "vitcop", "tome"}


def test_tables_land_between_their_marks(tmp_path: Path) -> None:
    (tmp_path / "gap.json").write_text((RECORDS / "gap.json").read_text())
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: gap -->\nold\n<!-- end: gap -->\nb\n")
    write_tables(tmp_path, page)
    text = page.read_text()
    assert "old" not in text and "DivPrune" in text and text.startswith("a\n") and text.endswith("b\n")
