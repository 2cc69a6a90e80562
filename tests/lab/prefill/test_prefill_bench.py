"""The prefill benchmark on its smallest preset: its numbers are consistent and its record is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pruneopt.cli.main import main
from pruneopt.errors import InputError, ModelError
from pruneopt.lab.prefill.page import write_page
from pruneopt.lab.prefill.presets import PRESETS, build, prompt
from pruneopt.lab.prefill.run import measure_spec, run_prefill_bench, table
from pruneopt.spec.load import load_spec


def test_row_is_consistent() -> None:
    model = build("tiny", "cpu", torch.float32)
    row = measure_spec(model, prompt(model, 2), load_spec("fastv"), repeats=2, warmup=1, decode=2)
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


def test_record_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "record.json"
    rows = run_prefill_bench(
        out, "tiny", ("topv",), (0.5,), (1,), repeats=2, decode=1, overrides=["steps=[]"]
    )
    record = json.loads(out.read_text())
    assert record["rows"][0]["kept"] == rows[0]["kept"] == 32
    assert {"torch", "transformers", "commit", "dirty", "threads"} <= set(record["environment"])
    assert table(rows).row_count == 1


def test_cli(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "prefill", "--preset", "tiny", "--keep", "0.5", "--repeats", "1", "--decode", "1"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--threads", "1"])
    assert done.value.code in (0, None)
    assert "speed-up" in capsys.readouterr().out


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.5b"):
        build("0.5", "cpu", torch.float32)
    assert set(PRESETS) == {"0.5b", "llava-1.5-7b", "qwen2.5-vl-7b", "tiny"}


def test_page_is_written_from_records(tmp_path: Path) -> None:
    page, records = tmp_path / "page.md", tmp_path / "records"
    page.write_text("# A\n\n<!-- prefill-table: how -->\nold\n<!-- end -->\n\nmore\n")
    with pytest.raises(InputError, match="no prefill record"):
        write_page(records, page)
    run_prefill_bench(records / "r.json", "tiny", ("random",), (0.5,), (1,), repeats=1, decode=0)
    write_page(records, page)
    text = page.read_text()
    assert (
        "old" not in text and "| random | 1 | 32 of 64 |" in text and text.endswith("<!-- end -->\n\nmore\n")
    )


def test_committed_record_meets_its_targets() -> None:
    """Overhead of TopV's selection at most 2 percent, realised speed-up at least 0.93 of the FLOP-ideal."""
    path = Path(__file__).parents[3] / "experiments" / "records" / "prefill" / "cpu-0.5b-topv.json"
    record = json.loads(path.read_text())
    assert [row["kept"] for row in record["rows"]] == [288, 63]
    for row in record["rows"]:
        assert row["selection_share_of_dense_language_model"] <= 0.02
        assert row["efficiency"] >= 0.93
