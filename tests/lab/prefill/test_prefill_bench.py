"""The prefill benchmark on its smallest preset: its numbers are consistent and its record is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pruneopt.cli.main import main
from pruneopt.errors import InputError, ModelError
from pruneopt.lab.prefill.presets import PRESETS, build, prompt
from pruneopt.lab.prefill.run import Plan, measure, measure_spec
from pruneopt.lab.prefill.table import everything
from pruneopt.lab.records import read_record, write_record
from pruneopt.lab.study import RECORDS, study
from pruneopt.spec.load import load_spec

QUIET = Console(quiet=True)


def test_row_is_consistent() -> None:
    model = build("tiny")
    row = measure_spec(model, prompt(model, 2), spec=load_spec("fastv"), repeats=2, warmup=1, decode=2)
    assert (row["batch"], row["visual_tokens"], row["kept"]) == (2, 64, 32)
    assert set(row["selection"]) >= {"signals", "cost", "solve", "apply"}
    assert row["selection_seconds"] == pytest.approx(sum(v["median"] for v in row["selection"].values()))
    for kind in ("dense", "pruned"):
        times = row[kind]
        assert 0 < times["language_model"]["median"] < times["prefill"]["median"]
        assert times["encoder"]["median"] > 0 and times["decode_token"]["min"] > 0
    assert row["ideal"] == pytest.approx(1 / row["flops_share"])
    assert row["efficiency"] == pytest.approx(row["speedup"]["median"] / row["ideal"])
    assert row["kv_bytes"]["pruned"] < row["kv_bytes"]["dense"]


def tiny(method: str, **more: Any) -> Plan:
    specs = [load_spec(method, ["budget.keep=0.5", *more.pop("overrides", ())])]
    return Plan("tiny", lambda: build("tiny"), specs, **more)


def test_record_and_table(tmp_path: Path) -> None:
    plan = tiny("topv", overrides=["steps=[]"], repeats=2, decode=1, file="record.json", commit="abc")
    measure(plan, tmp_path / "a", console=QUIET)
    record = read_record(tmp_path / "a" / "record.json")
    assert record["rows"][0]["kept"] == 32
    assert (record["preset"], record["dtype"], record["attention"]) == ("tiny", "float32", "sdpa")
    where = record["environment"]
    assert where["commit"] == "abc" and {"device", "dirty", "threads"} <= set(where)
    assert len(everything(record).rows) == 1


def test_cli(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "prefill", "--preset", "tiny", "--keep", "0.5", "--repeats", "1", "--decode", "1"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--threads", "1"])
    assert done.value.code in (0, None)
    assert "speed-up" in capsys.readouterr().out


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.5b"):
        build("0.5")
    assert set(PRESETS) == {"0.5b", "llava-1.5-7b", "qwen2.5-vl-7b", "tiny"}


def test_the_report_is_of_all_prefill_records_of_a_folder(tmp_path: Path) -> None:
    assert not study("prefill").holds(tmp_path)
    write_record(tmp_path / "targets.json", {"kind": "other"})
    with pytest.raises(InputError, match="holds no records"):
        study("prefill").markdown(tmp_path)
    for method in ("random", "fastv"):
        measure(tiny(method, repeats=1, decode=0, file=f"{method}.json"), tmp_path, console=QUIET)
    text = study("prefill").markdown(tmp_path)
    assert "| random | 1 | 32 of 64 |" in text and "| fastv | 1 | 32 of 64 |" in text


def test_committed_record_meets_its_targets() -> None:
    """Overhead of TopV's selection at most 2 percent, realised speed-up at least 0.93 of the FLOP-ideal."""
    record = read_record(RECORDS / "prefill" / "cpu-0.5b-topv.json")
    assert [row["kept"] for row in record["rows"]] == [288, 63]
    for row in record["rows"]:
        assert row["selection_share_of_dense_language_model"] <= 0.02
        assert row["efficiency"] >= 0.93
