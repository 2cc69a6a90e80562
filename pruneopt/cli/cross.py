"""`pruneopt cross`: list and run combinations of parts, and say why the others are illegal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pruneopt.cli.catalogue import console
from pruneopt.errors import InputError

_Names = Annotated[str, typer.Option(help="names, separated by commas; all when not given")]


def _split(names: str) -> list[str] | None:
    return [name.strip() for name in names.split(",") if name.strip()] or None


def cross_command(
    costs: _Names = "",
    scores: _Names = "",
    kernels: _Names = "",
    solvers: _Names = "",
    readouts: _Names = "",
    insertions: _Names = "",
    keep: Annotated[float, typer.Option(help="ratio up to 1, or a count of tokens")] = 0.25,
    signals: Annotated[str, typer.Option(help="safetensors file of canonical signals, [B,N,...]")] = "",
    model: Annotated[str, typer.Option(help="folder or hub id, or 'demo': run on live signals")] = "",
    image: Annotated[str, typer.Option(help="picture for --model; 'demo' has its own")] = "",
    prompt: Annotated[str, typer.Option(help="text for --model")] = "What is in the picture?",
    run: Annotated[bool, typer.Option(help="run the legal cells (random signals without a source)")] = True,
    illegal: Annotated[bool, typer.Option(help="list illegal cells with their reasons")] = True,
) -> None:
    """Cross costs, scores and kernels with solvers, readouts and insertion points."""
    from pruneopt.eval.cross import Outcome, cross, run_cells

    if signals and model:
        raise InputError("give either --signals or --model, not both")
    terms = [name for group in (costs, scores, kernels) for name in _split(group) or []] or None
    select, available = _source(signals, model, image, prompt, run)
    cells = cross(
        terms,
        _split(solvers),
        _split(insertions),
        _split(readouts),
        keep=int(keep) if keep > 1 else keep,
        available=available,
    )
    outcomes: dict[int, Outcome] = {}
    if run:
        outcomes = {id(outcome.cell): outcome for outcome in run_cells(cells, select)}
    table = Table("term", "problem", "solver", "readout", "insertion", "kept", "ms", "result")
    for cell in cells:
        outcome = outcomes.get(id(cell))
        row = (cell.term, cell.problem, cell.solver, cell.readout, cell.insertion)
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
    if failed:
        raise typer.Exit(1)


def _source(
    path: str, model: str, image: str, prompt: str, run: bool
) -> tuple[Callable, frozenset[str] | None]:
    """How a spec becomes a selection, and the signals that are at hand (None: what the insertion gives)."""
    if model:
        from pruneopt.eval.cross_live import live_select

        return live_select(model, image, prompt) if run else _nothing, None
    from pruneopt.eval.cross import on_signals
    from pruneopt.signals import Signals

    if not path:
        from pruneopt.insertion.provided import DECODER, ENCODER, ENTRY, GEOMETRY
        from pruneopt.testing.cases import make_signals

        last = {"cls_query@-1", "encoder_keys@-1", "cls_key@-1"}
        return on_signals(make_signals(GEOMETRY | ENCODER | ENTRY | DECODER | last, tokens=16)), None
    if not Path(path).is_file():
        raise InputError(f"signals file {path!r} does not exist")
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except Exception as error:
        raise InputError(f"{path!r} is not a safetensors file: {error}") from error
    mask = tensors.pop("mask", None)
    return on_signals(Signals(tensors, mask)), frozenset(name.partition("@")[0] for name in tensors)


def _nothing(spec: object) -> None:
    return None
