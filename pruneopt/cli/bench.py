"""`pruneopt bench`: measurements of solvers, selection and prefill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pruneopt.cli.catalogue import console

app = typer.Typer(help="Measure solvers, selection cost, prefill and memory.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="folder of the run; what it already holds is not measured again")]
Names = Annotated[str | None, typer.Option(help="names or patterns, separated by commas; all if left out")]


def split(text: str | None) -> list[str] | None:
    """Words separated by commas, or None."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    try:
        return [int(word) for word in split(text) or []]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 64,144") from error


def fractions(text: str) -> list[float]:
    """Ratios or counts separated by commas."""
    try:
        return [float(word) for word in split(text) or []]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.11") from error


@app.command("solvers")
def solvers(
    sizes: Annotated[str, typer.Option(help="tokens per side")] = "64,144,576,1024",
    batch: Annotated[str, typer.Option(help="problems per batch")] = "1,8",
    families: Names = None,
    solvers: Names = None,
    out: Out = Path("bench/solvers"),
    problems: Annotated[str, typer.Option(help="transport, subset or both")] = "both",
    repeats: Annotated[int, typer.Option(min=1, help="warm runs per cell")] = 5,
    budget: Annotated[float, typer.Option(min=0.0, help="about how many seconds of warm runs")] = 3.0,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")] = 0,
) -> None:
    """Transport and subset solvers against the exact optimum: accuracy, time, memory, readouts."""
    from pruneopt.bench.solvers import run_solver_bench
    from pruneopt.bench.subset import run_subset_bench

    if problems not in ("transport", "subset", "both"):
        raise typer.BadParameter("--problems must be transport, subset or both")
    if problems != "subset":
        run_solver_bench(
            out, numbers(sizes), numbers(batch), split(families), split(solvers), repeats, budget, threads
        )
    if problems != "transport":
        run_subset_bench(out)


@app.command("targets")
def targets(
    out: Annotated[Path | None, typer.Option(help="folder for the record")] = None,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")] = 0,
) -> None:
    """The speed and accuracy that the project promises; exit code 1 when one is missed."""
    from pruneopt.bench.targets import run_targets

    if not all(target.met for target in run_targets(out, threads=threads)):
        raise typer.Exit(1)


@app.command("select")
def select(
    out: Annotated[Path, typer.Option(help="folder for the record")] = Path("bench/select"),
    methods: Names = None,
    sizes: Annotated[str, typer.Option(help="tokens per picture")] = "144,324,576",
    batch: Annotated[int, typer.Option(min=1)] = 8,
    keep: Annotated[int, typer.Option(min=1, help="tokens kept")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="warm runs per cell")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")] = 0,
    gap: Annotated[bool, typer.Option("--gap", help="optimality gaps of the greedy methods instead")] = False,
    pictures: Annotated[int, typer.Option(min=1, help="embedded pictures for --gap")] = 8,
    time_limit: Annotated[float, typer.Option(help="seconds per exact solve for --gap")] = 20.0,
    into: Annotated[Path | None, typer.Option(help="page whose marked tables are rewritten")] = None,
    report: Annotated[bool, typer.Option("--report", help="only rewrite tables from the record")] = False,
) -> None:
    """Time, memory and growth of every method's selection; with --gap, how far greedy is from optimal."""
    from pruneopt.bench.cells import run_threads
    from pruneopt.bench.select import run_select_bench
    from pruneopt.bench.select_gap import run_gap_bench, write_tables

    if not report:
        run_threads(threads or os.cpu_count() or 1)
        if gap:
            run_gap_bench(out, pictures, time_limit)
        else:
            run_select_bench(out, split(methods), numbers(sizes), batch, keep, repeats)
    write_tables(out, into)


@app.command("prefill")
def prefill(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value", show_default=False)] = None,
    preset: Annotated[str, typer.Option(help="0.5b, llava-1.5-7b, qwen2.5-vl-7b or tiny")] = "0.5b",
    model: Annotated[str | None, typer.Option(help="folder or hub id instead of a preset")] = None,
    image: Annotated[str | None, typer.Option(help="picture for --model")] = None,
    prompt: Annotated[str, typer.Option(help="question for --model")] = "What is in the picture?",
    method: Annotated[str, typer.Option("--method", "-m", help="names separated by commas")] = "topv",
    keep: Annotated[str, typer.Option(help="budgets separated by commas")] = "0.5,0.11",
    batch: Annotated[str, typer.Option(help="batch sizes separated by commas")] = "1",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    attention: Annotated[str, typer.Option(help="the model's attention setting")] = "sdpa",
    repeats: Annotated[int, typer.Option(min=1, help="measured passes")] = 5,
    decode: Annotated[int, typer.Option(min=0, help="decoded tokens per pass")] = 8,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")] = 0,
    out: Annotated[Path | None, typer.Option(help="record to write (JSON)")] = None,
) -> None:
    """Dense and pruned prefill side by side: time per part, FLOP-ideal speed-up, KV bytes, memory."""
    from pruneopt.bench.cells import run_threads
    from pruneopt.bench.prefill import run_prefill_bench, table
    from pruneopt.cli.prefill import given_model

    run_threads(threads or os.cpu_count() or 1)
    options = {} if model is None else given_model(model, image, prompt, device, dtype, attention)
    rows = run_prefill_bench(
        out,
        preset if model is None else model,
        split(method) or ["topv"],
        fractions(keep),
        numbers(batch),
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
    from pruneopt.bench.report import write_page

    write_page(out, into)
