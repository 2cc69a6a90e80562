"""Studies of many small cells: one JSON file a cell while a study runs, Parquet when it is done.

A cell is written whole or not at all and never measured twice, so an interrupted study goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.environment import environment, machine
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement: `key` stands in its row, `settings` is what its numbers hang on beside that."""

    key: Row
    settings: object
    measure: Callable[[], Row] = field(compare=False)

    @property
    def words(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.key.items())

    @property
    def file(self) -> str:
        """A readable name, with 8 hexadecimal digits over everything that its numbers hang on."""
        label = "-".join("".join(c if c.isalnum() else "-" for c in str(x)) for x in self.key.values())
        digest = hashlib.sha256(repr((self.key, self.settings)).encode()).hexdigest()[:8]
        return f"{label}-{digest}.json"

    def row(self) -> Row:
        """What was measured.  A solver that fails is a result too: it must not stop the others."""
        try:
            return self.key | self.measure()
        except InputError:
            raise
        except Exception as error:
            said = str(error).partition("\n")[0]
            return self.key | {"error": f"{type(error).__name__}: {said}"}


def measure_cells(cells: Sequence[Cell], folder: Path, *, console: Console) -> None:
    """Measure every cell that `folder` does not hold yet; each row says on which machine."""
    where = {"machine": machine(environment())}
    missing = [cell for cell in cells if not (folder / cell.file).exists()]
    console.print(f"{len(cells)} cells, {len(cells) - len(missing)} already measured")
    with progress(console, "cells", total=len(missing)) as step:
        for cell in missing:
            row = cell.row() | where
            write_record(folder / cell.file, row)
            took = row.get("error") or f"{1e3 * row['seconds_p50']:.1f} ms"
            step(1, f"{cell.words}: {took}")


def read_cells(folder: Path) -> list[Row]:
    """Every cell of a folder, by name, all with the same columns; none when there is no folder."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = path.with_name(f"{path.name}.part")
    pq.write_table(pa.Table.from_pylist(list(rows)), part, compression="zstd")
    os.replace(part, path)


def read_rows(path: Path) -> list[Row]:
    """Rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows
