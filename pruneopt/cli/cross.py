"""`pruneopt cross`: list and run combinations of parts, and say why the others are illegal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pruneopt.cli.catalogue import console
from pruneopt.cli.options import Machine, MaybeAsked, budgets, grouped, split
from pruneopt.errors import InputError

if TYPE_CHECKING:
    from pruneopt.problems.selection import Selection
    from pruneopt.signals import Signals
    from pruneopt.spec.schema import Spec

_Names = Annotated[str, typer.Option(help="names, separated by commas; all when not given")]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is crossed."""

    costs: _Names = ""
    scores: _Names = ""
    kernels: _Names = ""
    solvers: _Names = ""
    readouts: _Names = ""
    insertions: _Names = ""


@grouped
def cross_command(
    *,
    parts: Parts,
    keep: Annotated[str, typer.Option(help="ratio up to 1, or a count of tokens")] = "0.25",
    signals: Annotated[
        Path | None, typer.Option(help="safetensors file of canonical signals, [B,N,...]")
    ] = None,
    asked: MaybeAsked,
    machine: Machine,
    run: Annotated[bool, typer.Option(help="run the legal cells (random signals without a source)")] = True,
    illegal: Annotated[bool, typer.Option(help="list illegal cells with their reasons")] = True,
) -> None:
    """Cross costs, scores and kernels with solvers, readouts and insertion points.

    Exit code 1 when a legal cell fails or misses its budget.
    """
    from pruneopt.lab.cross.cells import Outcome, cross, legal_shares, run_cells

    # What contradicts itself is refused before combinations are resolved, which takes a while.
    if signals is not None and asked.model:
        raise InputError("give either --signals or --model, not both")
    if machine != Machine() and not asked.model:
        raise InputError("--device, --dtype and --attention are for --model; give it, or leave them out")
    budget = budgets(keep)
    if len(budget) > 1:
        raise InputError(f"--keep is one ratio or count, got {keep!r}")
    named = {"costs": parts.costs, "scores": parts.scores, "kernels": parts.kernels}
    terms = [f"{group}/{name}" for group, names in named.items() for name in split(names) or []] or None
    tensors = None if signals is None else _signals(signals)
    cells = cross(
        terms,
        split(parts.solvers),
        insertions=split(parts.insertions),
        readouts=split(parts.readouts),
        keep=budget[0],
        available=None if tensors is None else [name.partition("@")[0] for name in tensors],
    )
    if asked.model:
        from pruneopt.lab.cross.live import live_select

        picture, prompt = asked.read()
        select = live_select(*machine.load(asked.model), picture=picture, prompt=prompt) if run else None
    else:
        select = _on(tensors)
    outcomes: dict[int, Outcome] = {}
    if run and select is not None:
        outcomes = {id(outcome.cell): outcome for outcome in run_cells(cells, select)}
    table = Table("term", "via", "problem", "solver", "readout", "insertion", "kept", "ms", "result")
    for cell in cells:
        outcome = outcomes.get(id(cell))
        row = (cell.term, cell.via, cell.problem, cell.solver, cell.readout, cell.insertion)
        if not cell.legal:
            if illegal:
                table.add_row(*row, "", "", f"illegal: {cell.reason}")
        elif outcome is None:
            table.add_row(*row, "", "", "legal")
        else:
            result = outcome.error or ("exact budget" if outcome.ok else f"asked for {list(outcome.wanted)}")
            result += "; " + outcome.notes[0] if outcome.notes else ""
            table.add_row(*row, str(list(outcome.kept)), f"{1000 * outcome.seconds:.1f}", result)
    console().print(table)
    legal = sum(cell.legal for cell in cells)
    failed = sum(not outcome.ok for outcome in outcomes.values())
    console().print(f"{legal} legal, {len(cells) - legal} illegal, {len(outcomes)} run, {failed} off budget")
    plain, turned = legal_shares(cells)
    console().print(
        f"legal share: {plain:.1%} with terms as they are, "
        f"{turned:.1%} with the parts that turn one kind into another"
    )
    if failed:
        raise typer.Exit(1)


def _signals(path: Path) -> Signals:
    """Signals of a safetensors file; the tensor `mask` is their mask. Raises InputError, SignalError."""
    from safetensors.torch import load_file

    from pruneopt.signals import Signals

    if not path.is_file():
        raise InputError(f"signals file {str(path)!r} does not exist")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise InputError(f"{str(path)!r} is not a safetensors file: {error}") from error
    mask = tensors.pop("mask", None)
    return Signals(tensors, None if mask is None else mask.bool())


def _on(signals: Signals | None) -> Callable[[Spec], Selection]:
    """Selections on saved signals, or on random ones that have everything."""
    from pruneopt.lab.cross.cells import on_signals

    if signals is not None:
        return on_signals(signals)
    from pruneopt.signals import SIGNALS
    from pruneopt.testing.cases import make_signals

    return on_signals(make_signals({*SIGNALS, "cls_query@-1", "encoder_keys@-1", "cls_key@-1"}, tokens=16))
