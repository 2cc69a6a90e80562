"""Dense and pruned prefill, from records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruneopt.lab.environment import package
from pruneopt.lab.records import read_record
from pruneopt.lab.tables import Piece, Table
from pruneopt.models.report import mebibytes

HOME = "prefill"
_HEADER = (
    "method", "batch", "visual tokens kept", "dense LM prefill", "pruned, selection included", "selection",
    "speed-up", "FLOP-ideal", "ratio", "ratio in processor time", "KV cache",
)  # fmt: skip
_ALL = (
    "method", "batch", "kept", "encoder", "dense LM", "pruned LM", "selection", "rest", "speed-up", "ideal",
    "ratio", "KV", "decode dense", "decode pruned", "peak dense", "peak pruned",
)  # fmt: skip


def tables(out: Path) -> list[Piece]:
    """Every prefill record in `out`: where it ran, then one line per measured cell."""
    found = [read_record(path) for path in sorted(out.glob("*.json"))]
    return [piece for record in found if record.get("kind") == "prefill" for piece in tables_of(record)]


def tables_of(record: Mapping[str, Any]) -> list[Piece]:
    """The lines of a record that a page shows."""
    where = record["environment"]
    return [
        f"Preset {record['preset']}, {record['dtype']}, {record['attention']}, {where['device']}, "
        f"{where['threads']} threads, torch {package(where, 'torch')}, transformers "
        f"{package(where, 'transformers')}; medians of {record['rows'][0]['repeats']} passes, dense and "
        "pruned in turns.",
        Table(_HEADER, [_cells(row) for row in record["rows"]]),
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    dense, pruned = row["dense"]["language_model"]["median"], row["pruned"]["language_model"]["median"]
    return [
        row["method"],
        str(row["batch"]),
        f"{row['kept']} of {row['visual_tokens']}",
        f"{1000 * dense:.0f} ms",
        f"{1000 * pruned:.0f} ms",
        f"{1000 * row['selection_seconds']:.1f} ms ({row['selection_share_of_dense_language_model']:.2%})",
        *_ratios(row),
        f"{row['efficiency_processor_time']:.2f}",
        _cache(row),
    ]


def everything(record: Mapping[str, Any]) -> Table:
    """All that was measured, milliseconds, for a terminal."""
    return Table(_ALL, [_every_cell(row) for row in record["rows"]], "prefill, ms")


def _every_cell(row: Mapping[str, Any]) -> list[str]:
    dense, pruned = row["dense"], row["pruned"]
    return [
        row["method"],
        str(row["batch"]),
        f"{row['kept']}/{row['visual_tokens']}",
        _ms(dense["encoder"]["median"]),
        _ms(dense["language_model"]["median"]),
        _ms(pruned["language_model"]["median"]),
        f"{_ms(row['selection_seconds'])} ({row['selection_share_of_dense_language_model']:.1%})",
        _ms(row["rest_of_prefill"]),
        *_ratios(row),
        _cache(row),
        *(_ms(side["decode_token"]["median"]) if "decode_token" in side else "" for side in (dense, pruned)),
        *(
            "" if peak is None else mebibytes(peak)
            for peak in map(row["peak_bytes"].get, ("dense", "pruned"))
        ),
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _ratios(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['speedup']['median']:.2f}", f"{row['ideal']:.2f}", f"{row['efficiency']:.2f}"]


def _cache(row: Mapping[str, Any]) -> str:
    return f"{row['kv_bytes']['pruned'] / row['kv_bytes']['dense']:.0%}"
