"""Tables of prefill records in a page: `python -m pruneopt.lab.prefill.page RECORDS PAGE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pruneopt.errors import InputError

BEGIN, END = "<!-- prefill-table", "<!-- end -->"


def rows_of(record: dict[str, Any]) -> list[str]:
    """Markdown of one record: where it ran, then one line per measured cell."""
    where = record["environment"]
    lines = [
        f"Preset {record['preset']}, {record['dtype']}, {record['attention']}, {where['device']}, "
        f"{where['threads']} threads, torch {where['torch']}, transformers {where['transformers']}; medians "
        f"of {record['rows'][0]['repeats']} passes, dense and pruned in turns.",
        "",
        "| method | batch | visual tokens kept | dense LM prefill | pruned, selection included | selection | "
        "speed-up | FLOP-ideal | ratio | ratio in processor time | KV cache |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        dense, pruned = row["dense"]["language_model"]["median"], row["pruned"]["language_model"]["median"]
        lines.append(
            f"| {row['method']} | {row['batch']} | {row['kept']} of {row['visual_tokens']} | "
            f"{1000 * dense:.0f} ms | {1000 * pruned:.0f} ms | {1000 * row['selection_seconds']:.1f} ms "
            f"({row['selection_share_of_dense_language_model']:.2%}) | {row['speedup']['median']:.2f} | "
            f"{row['ideal']:.2f} | {row['efficiency']:.2f} | "
            f"{row['efficiency_processor_time']:.2f} | "
            f"{row['kv_bytes']['pruned'] / row['kv_bytes']['dense']:.0%} |"
        )
    return lines


def write_page(records: Path, page: Path) -> None:
    """Replace the marked part of `page` by the tables of all records in a folder.

    Raises InputError when there is no record or no mark.
    """
    found = sorted(records.glob("*.json"))
    if not found:
        raise InputError(f"no prefill record in {records}; make one with `pruneopt bench prefill --out FILE`")
    bodies = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    blocks = ["\n".join(rows_of(body)) for body in bodies if body["kind"] == "prefill"]
    text = page.read_text(encoding="utf-8")
    start = text.find(BEGIN)
    stop = text.find(END, start)
    if start < 0 or stop < 0:
        raise InputError(f"{page} has no part between '{BEGIN}' and '{END}'")
    head = text.index("\n", start) + 1
    page.write_text(text[:head] + "\n" + "\n\n".join(blocks) + "\n\n" + text[stop:], encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
