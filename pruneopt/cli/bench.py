"""`pruneopt bench`: measurements of solvers, selection and prefill."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pruneopt.cli.catalogue import console
from pruneopt.cli.options import (
    Attention,
    Device,
    Dtype,
    Machine,
    Names,
    Overrides,
    Threads,
    budgets,
    counts,
    split,
)
from pruneopt.errors import InputError, nearest

app = typer.Typer(help="Measure solvers, selection cost, prefill and memory.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="folder of the run; what it already holds is not measured again")]
Repeats = Annotated[int, typer.Option(min=1, help="warm runs per cell")]
_PROBLEMS = ("transport", "subset", "both")


@app.command("solvers")
def solvers(
    sizes: Annotated[
        str | None, typer.Option(help="tokens; each kind of problem has its own if left out")
    ] = None,
    batch: Annotated[str, typer.Option(help="transport problems per batch")] = "1,8",
    families: Names = None,
    solvers: Names = None,
    out: Out = Path("bench/solvers"),
    problems: Annotated[str, typer.Option(help="transport, subset or both")] = "both",
    repeats: Repeats = 5,
    budget: Annotated[float, typer.Option(min=0.0, help="about how many seconds of warm runs")] = 3.0,
    threads: Threads = 0,
) -> None:
    """Transport and subset solvers against the exact optimum: accuracy, time, memory, readouts."""
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.solvers import run as transport
    from pruneopt.lab.subset import run as subset

    if problems not in _PROBLEMS:
        raise InputError(f"unknown --problems {problems!r}{nearest(problems, _PROBLEMS)}")
    tokens, batches = None if sizes is None else counts(sizes), counts(batch)
    prepare_folder(out)
    if problems != "subset":
        transport.run_solver_bench(
            out,
            tokens or transport.SIZES,
            batches,
            split(families),
            split(solvers),
            repeats,
            budget,
            threads,
        )
    if problems != "transport":
        subset.run_subset_bench(out, tokens or subset.SIZES)


@app.command("targets")
def targets(
    out: Annotated[Path | None, typer.Option(help="folder for the record")] = None,
    threads: Threads = 0,
) -> None:
    """The speed and accuracy that the project promises; exit code 1 when one is missed."""
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.targets.run import run_targets

    if out is not None:
        prepare_folder(out)
    if not all(target.met for target in run_targets(out, threads=threads)):
        raise typer.Exit(1)


@app.command("select")
def select(
    out: Annotated[Path, typer.Option(help="folder for the record")] = Path("bench/select"),
    methods: Names = None,
    sizes: Annotated[str, typer.Option(help="tokens per picture")] = "144,324,576",
    batch: Annotated[int, typer.Option(min=1, help="pictures per batch")] = 8,
    keep: Annotated[int, typer.Option(min=1, help="tokens kept")] = 64,
    repeats: Repeats = 5,
    threads: Threads = 0,
    gap: Annotated[bool, typer.Option("--gap", help="optimality gaps of the greedy methods instead")] = False,
    pictures: Annotated[int, typer.Option(min=1, help="embedded pictures for --gap")] = 8,
    time_limit: Annotated[float, typer.Option(min=0.0, help="seconds per exact solve for --gap")] = 20.0,
    into: Annotated[Path | None, typer.Option(help="page whose marked tables are rewritten")] = None,
    report: Annotated[bool, typer.Option("--report", help="only rewrite tables from the record")] = False,
) -> None:
    """Time, memory and growth of every method's selection; with --gap, how far greedy is from optimal."""
    from pruneopt.lab.gap.run import run_gap_bench, write_tables
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.selection.run import run_select_bench
    from pruneopt.lab.solvers.cells import run_threads

    tokens = counts(sizes)
    if max(tokens) <= keep:
        raise InputError(
            f"--sizes {sizes} holds nothing above --keep {keep}; there would be nothing to choose"
        )
    _marked(into, ("select", "gap"), any)
    if report and not any((out / f"{name}.json").is_file() for name in ("select", "gap")):
        raise InputError(f"{str(out)!r} holds no record; run `pruneopt bench select --out {out}` first")
    prepare_folder(out)
    if not report:
        run_threads(threads or os.cpu_count() or 1)
        if gap:
            run_gap_bench(out, pictures, time_limit)
        else:
            run_select_bench(out, split(methods), tokens, batch, keep, repeats)
    write_tables(out, into)


@app.command("prefill")
def prefill(
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option(help="0.5b, llava-1.5-7b, qwen2.5-vl-7b or tiny")] = "0.5b",
    model: Annotated[str, typer.Option(help="folder or hub id, or 'demo', instead of a preset")] = "",
    image: Annotated[str, typer.Option(help="picture for --model; 'demo' has its own")] = "",
    prompt: Annotated[str, typer.Option(help="question for --model")] = "What is in the picture?",
    method: Annotated[str, typer.Option("--method", "-m", help="names separated by commas")] = "topv",
    keep: Annotated[str, typer.Option(help="budgets separated by commas")] = "0.5,0.11",
    batch: Annotated[str, typer.Option(help="batch sizes separated by commas")] = "1",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    repeats: Annotated[int, typer.Option(min=1, help="measured passes")] = 5,
    decode: Annotated[int, typer.Option(min=0, help="decoded tokens per pass")] = 8,
    threads: Threads = 0,
    out: Annotated[Path | None, typer.Option(help="record to write (JSON)")] = None,
) -> None:
    """Dense and pruned prefill side by side: time per part, FLOP-ideal speed-up, KV bytes, memory."""
    from pruneopt.lab.prefill.run import picture_inputs, run_prefill_bench, table
    from pruneopt.lab.records import prepare_file
    from pruneopt.lab.solvers.cells import run_threads
    from pruneopt.show.images import asked

    machine = Machine(device, dtype, attention)
    methods, keeps, batches = split(method), budgets(keep), counts(batch)
    if methods is None:
        raise InputError("--method names no method")
    question = asked(model, image, prompt=prompt) if model else None
    if out is not None:
        prepare_file(out)
    run_threads(threads or os.cpu_count() or 1)
    options: dict[str, Any] = {}
    if question is not None:
        loaded, processor = machine.load(model)
        options = {"model": loaded, "inputs_of": picture_inputs(processor, *question)}
    rows = run_prefill_bench(
        out,
        model or preset,
        methods,
        keeps,
        batches,
        device,
        dtype,
        attention,
        repeats,
        decode,
        overrides or [],
        **options,
    )
    console().print(table(rows))


@app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="folder of a finished run")],
    into: Annotated[Path | None, typer.Option(help="page to write the tables into")] = None,
) -> None:
    """Redo tables and pictures of a solver run from its records."""
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.targets.page import write_page

    _marked(into, ("solvers", "subset", "targets"), all)
    if not out.is_dir():
        raise InputError(f"folder {str(out)!r} does not exist")
    prepare_folder(out)
    write_page(out, into)


def _marked(page: Path | None, names: Sequence[str], enough: Callable[[Iterable[bool]], bool]) -> None:
    """Raise InputError unless `page` can be written and has marks for enough of these tables."""
    from pruneopt.lab.records import prepare_file

    if page is None:
        return
    if not page.is_file():
        raise InputError(f"page {str(page)!r} does not exist")
    prepare_file(page)
    text = page.read_bytes()
    if not enough(f"<!-- begin: {name} -->".encode() in text for name in names):
        raise InputError(f"page {str(page)!r} lacks lines <!-- begin: NAME --> for {', '.join(names)}")
