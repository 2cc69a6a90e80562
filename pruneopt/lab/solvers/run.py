"""`pruneopt bench solvers`: accuracy, time and memory of transport solvers, side by side and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pruneopt.errors import InputError, nearest
from pruneopt.lab.grid import Cell, measure_cells, write_rows
from pruneopt.lab.solvers.cells import Entry, Place, chosen, measured
from pruneopt.lab.solvers.embedded import fits
from pruneopt.lab.solvers.families import FAMILIES
from pruneopt.lab.solvers.peers import PEERS, Peer
from pruneopt.lab.solvers.rows import from_cells


@dataclass(frozen=True)
class Plan:
    """Solvers on families of problems.

    Parameters
    ----------
    sizes, batches : tokens per side, problems per batch.
    families, solvers : names or patterns, all when empty.
    repeats, budget : warm runs per cell, within about that many seconds.

    Raises
    ------
    InputError
        For an unknown family or solver.
    """

    sizes: Sequence[int] = (64, 144, 576, 1024)
    batches: Sequence[int] = (1, 8)
    families: Sequence[str] = ()
    solvers: Sequence[str] = ()
    repeats: int = 5
    budget: float = 3.0

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise InputError(f"unknown cost family {name!r}{nearest(name, FAMILIES)}")
        chosen(self.solvers)


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Measure every cell that `out/cells` does not hold yet, then write the two Parquet files of `out`."""
    for peer in PEERS.values() if not plan.solvers else ():
        if not peer.installed:
            console.print(f"not measured: {peer.absence}", markup=False)
    measure_cells(list(_cells(plan)), out / "cells", console=console)
    for name, rows in from_cells(out).items():
        write_rows(out / f"{name}.parquet", rows)


def _cells(plan: Plan) -> Iterator[Cell]:
    entries = chosen(plan.solvers).values()
    for family in plan.families or FAMILIES:
        for tokens in plan.sizes:
            if family == "embedded" and not fits(tokens):
                continue
            for batch in plan.batches:
                for entry in entries:
                    if tokens <= entry.most_tokens and (not entry.uniform_only or family == "permuted"):
                        yield _cell(entry, Place(family, tokens, batch), plan=plan)


def _cell(entry: Entry, place: Place, *, plan: Plan) -> Cell:
    key = {**vars(place), "solver": entry.label, "peer": entry.peer}
    solver = entry.solver
    settings = (solver.epsilon, solver.rounds) if isinstance(solver, Peer) else solver.to_spec()
    return Cell(key, settings, lambda: measured(entry, place, repeats=plan.repeats, budget=plan.budget))
