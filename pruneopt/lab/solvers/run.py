"""`pruneopt bench solvers`: accuracy, time and memory of transport solvers, side by side and resumable."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from pruneopt.errors import InputError, nearest
from pruneopt.lab.clock import digest, wide
from pruneopt.lab.solvers.cells import Entry, cell, chosen, run_threads
from pruneopt.lab.solvers.embedded import fits
from pruneopt.lab.solvers.families import FAMILIES
from pruneopt.lab.solvers.peers import Peer

SIZES = (64, 144, 576, 1024)
BATCHES = (1, 8)


def run_solver_bench(
    out: Path,
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    families: Sequence[str] | None = None,
    solvers: Sequence[str] | None = None,
    repeats: int = 5,
    budget: float = 3.0,
    threads: int = 0,
    console: Console | None = None,
) -> Path:
    """Measure every cell that `out/cells` does not hold yet, then write tables, Parquet and pictures.

    Parameters
    ----------
    out: folder of the run; one JSON per cell, written whole or not at all, so an interrupted run goes on
        where it stopped.
    sizes, batches: tokens per side, problems per batch.  families, solvers: names or patterns; all if None.
    repeats, budget: warm runs per cell, within about that many seconds.  threads: torch threads, 0 is all.

    Raises InputError for an unknown family or solver, or one that needs what is not installed.
    """
    console = console or wide()
    names = list(families or FAMILIES)
    for name in names:
        if name not in FAMILIES:
            raise InputError(f"unknown cost family {name!r}{nearest(name, FAMILIES)}")
    picked = chosen(list(solvers) if solvers else None)
    run_threads(threads or os.cpu_count() or 1)
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    todo = list(_cells(names, sizes, batches, picked))
    missing = [x for x in todo if not _path(folder, x).exists()]
    console.print(f"{len(todo)} cells, {len(todo) - len(missing)} already measured")
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(missing))
        for i, (family, tokens, batch, entry) in enumerate(missing):
            what = f"{family} N={tokens} B={batch} {entry.label}"
            bar.update(task, description=what)
            record = _measured(entry, family, tokens, batch, repeats, budget)
            _write(_path(folder, (family, tokens, batch, entry)), record)
            bar.advance(task)
            if not console.is_terminal:
                seconds = record.get("seconds_p50")
                took = record["error"] if seconds is None else f"{seconds * 1e3:.1f} ms"
                console.print(f"[{i + 1}/{len(missing)}] {what}: {took}", markup=False, highlight=False)
    from pruneopt.lab.solvers.report import write_report

    write_report(out, console)
    return out


def _measured(
    entry: Entry, family: str, tokens: int, batch: int, repeats: int, budget: float
) -> dict[str, Any]:
    """A solver that fails is a result too: it must not stop the others."""
    try:
        return cell(entry, family, tokens, batch, repeats, budget) | {"machine": platform.machine()}
    except Exception as error:
        if isinstance(error, InputError):
            raise
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {
            "family": family, "tokens": tokens, "batch": batch, "solver": entry.label, "peer": entry.peer,
            "error": said, "readouts": [],
        }  # fmt: skip


Key = tuple[str, int, int, Entry]


def _cells(
    families: Sequence[str], sizes: Sequence[int], batches: Sequence[int], entries: dict[str, Entry]
) -> Iterator[Key]:
    for family in families:
        for tokens in sizes:
            if family == "embedded" and not fits(tokens):
                continue
            for batch in batches:
                for entry in entries.values():
                    if tokens <= entry.most_tokens and (not entry.uniform_only or family == "permuted"):
                        yield family, tokens, batch, entry


def _path(folder: Path, key: Key) -> Path:
    family, tokens, batch, entry = key
    solver = entry.solver
    settings = (solver.epsilon, solver.rounds) if isinstance(solver, Peer) else solver.to_spec()
    label = "".join(c if c.isalnum() else "-" for c in entry.label)
    return folder / f"{family}-{tokens}-{batch}-{label}-{digest(entry.label, settings)}.json"


def _write(path: Path, record: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(path)
