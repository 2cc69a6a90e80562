"""`pruneopt bench`: measurements of solvers, selection and prefill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pruneopt.cli.catalogue import console
from pruneopt.cli.options import (
    Machine,
    MaybeAsked,
    Names,
    Overrides,
    Threads,
    budgets,
    counts,
    grouped,
    split,
)
from pruneopt.errors import InputError, nearest

app = typer.Typer(help="Measure solvers, selection cost, prefill and memory.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="folder of the run; what it already holds is not measured again")]
Into = Annotated[Path | None, typer.Option(help="page whose marked tables are rewritten")]
Repeats = Annotated[int, typer.Option(min=1, help="warm runs per cell")]
_PROBLEMS = {
    "transport": ["solvers"], "subset": ["subset"], "both": ["solvers", "subset"], "scale": ["scale"],
}  # fmt: skip


@dataclass(frozen=True)
class SolverGrid:
    """What `bench solvers` crosses."""

    sizes: Annotated[
        str | None, typer.Option(help="tokens; each kind of problem has its own if left out")
    ] = None
    batch: Annotated[str, typer.Option(help="transport problems per batch")] = "1,8"
    families: Names = None
    solvers: Names = None


@app.command("solvers")
@grouped
def solvers(
    *,
    grid: SolverGrid,
    out: Out = Path("bench/solvers"),
    problems: Annotated[str, typer.Option(help="transport, subset, both, or scale: by rows")] = "both",
    repeats: Repeats = 5,
    budget: Annotated[float, typer.Option(min=0.0, help="about how many seconds of warm runs")] = 3.0,
    threads: Threads = 0,
) -> None:
    """Transport and subset solvers against the exact optimum: accuracy, time, memory, readouts."""
    if problems not in _PROBLEMS:
        raise InputError(f"unknown --problems {problems!r}{nearest(problems, _PROBLEMS)}")
    tokens: dict[str, Any] = {} if grid.sizes is None else {"sizes": counts(grid.sizes)}
    settings: dict[str, dict[str, Any]] = {
        "solvers": {
            "batches": counts(grid.batch), "families": split(grid.families) or (),
            "solvers": split(grid.solvers) or (), "repeats": repeats, "budget": budget,
        },
        "subset": {}, "scale": {},
    }  # fmt: skip
    plans = {name: _plan(name, **tokens, **settings[name]) for name in _PROBLEMS[problems]}
    _measure(plans, out, threads=threads)
    _report(out, list(plans))


@app.command("targets")
def targets(
    out: Annotated[Path | None, typer.Option(help="folder for the record")] = None,
    threads: Threads = 0,
) -> None:
    """The speed and accuracy that the project promises; exit code 1 when one is missed."""
    from pruneopt.lab.records import read_record

    with TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        _measure({"targets": _plan("targets")}, folder, threads=threads)
        _report(folder, ["targets"])
        met = all(target["met"] for target in read_record(folder / "targets.json")["targets"])
    if not met:
        raise typer.Exit(1)


@dataclass(frozen=True)
class SelectGrid:
    """What `bench select` crosses."""

    methods: Names = None
    sizes: Annotated[str, typer.Option(help="tokens per picture")] = "144,324,576"
    batch: Annotated[int, typer.Option(min=1, help="pictures per batch")] = 8
    keep: Annotated[int, typer.Option(min=1, help="tokens kept")] = 64


@dataclass(frozen=True)
class Gap:
    """Whether `bench select` measures gaps in the place of time, and on what."""

    gap: Annotated[bool, typer.Option("--gap", help="optimality gaps of the greedy methods instead")] = False
    pictures: Annotated[int, typer.Option(min=1, help="embedded pictures for --gap")] = 8
    time_limit: Annotated[float, typer.Option(min=0.0, help="seconds per exact solve for --gap")] = 60.0


@app.command("select")
@grouped
def select(
    *,
    out: Annotated[Path, typer.Option(help="folder for the record")] = Path("bench/select"),
    grid: SelectGrid,
    repeats: Repeats = 5,
    threads: Threads = 0,
    gap: Gap,
    into: Into = None,
    report: Annotated[bool, typer.Option("--report", help="only rewrite tables from the record")] = False,
) -> None:
    """Time, memory and growth of every method's selection; with --gap, how far greedy is from optimal."""
    names = ["gap", "selection"]
    cost = _plan(
        "selection",
        methods=split(grid.methods) or (),
        sizes=counts(grid.sizes),
        batch=grid.batch,
        keep=grid.keep,
        repeats=repeats,
    )
    if into is not None:
        _marked(into, names)  # before the measuring, not after it
    if not report:
        plans = {"selection": cost}
        if gap.gap:
            plans = {"gap": _plan("gap", pictures=gap.pictures, time_limit=gap.time_limit)}
        _measure(plans, out, threads=threads)
    _report(out, names, into=into)


@app.command("released")
def released(
    *,
    out: Annotated[Path, typer.Option(help="folder for the record")] = Path("bench/select"),
    methods: Names = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="about how long the two sides take turns")] = 3.0,
    threads: Threads = 1,
    into: Into = None,
) -> None:
    """Every method's selection beside the rule that its authors released, in turns on the same signals."""
    plan = _plan("released", methods=split(methods) or (), seconds=seconds)
    if into is not None:
        _marked(into, ["released"])
    _measure({"released": plan}, out, threads=threads)
    _report(out, ["released"], into=into)


@app.command("price")
def price(
    *,
    out: Annotated[Path, typer.Option(help="folder of the run; finished parts are not run again")] = Path(
        "bench/price"
    ),
    pictures: Annotated[int, typer.Option(help="embedded pictures, a multiple of 10")] = 40,
    threads: Threads = 0,
    into: Into = None,
    report: Annotated[bool, typer.Option("--report", help="only rewrite tables from the record")] = False,
) -> None:
    """Equal shares of a budget against one price for all pictures: values, bounds, accuracy."""
    plan = _plan("price", pictures=pictures)
    if into is not None:
        _marked(into, ["price"])
    if not report:
        _measure({"price": plan}, out, threads=threads)
    _report(out, ["price"], into=into)


@app.command("notch")
def notch(
    *,
    out: Out = Path("bench/notch"),
    methods: Names = None,
    keep: Annotated[str, typer.Option(help="budgets in tokens of 144, separated by commas")] = "16,36,64",
    questions: Annotated[int, typer.Option(min=1, help="questions, evenly over the pictures")] = 200,
    bounded: Annotated[int, typer.Option(min=0, help="pictures with an upper bound")] = 12,
    threads: Threads = 0,
) -> None:
    """Greedy rules against better solvers of their own problems: gap, accuracy, fidelity."""
    plan = _plan("notch", methods=split(methods) or (), budgets=tuple(counts(keep)),
                 questions=questions, bounded=bounded)  # fmt: skip
    _measure({"notch": plan}, out, threads=threads)
    _report(out, ["notch"])


@dataclass(frozen=True)
class PrefillGrid:
    """What `bench prefill` crosses, and how often each is run."""

    method: Annotated[str, typer.Option("--method", "-m", help="names separated by commas")] = "topv"
    keep: Annotated[str, typer.Option(help="budgets separated by commas")] = "0.5,0.11"
    batch: Annotated[str, typer.Option(help="batch sizes separated by commas")] = "1"
    repeats: Annotated[int, typer.Option(min=1, help="measured passes")] = 5
    decode: Annotated[int, typer.Option(min=0, help="decoded tokens per pass")] = 8


@app.command("prefill")
@grouped
def prefill(
    *,
    overrides: Overrides = None,
    preset: Annotated[
        str, typer.Option(help="without --model: 0.5b, llava-1.5-7b, qwen2.5-vl-7b or tiny")
    ] = "0.5b",
    asked: MaybeAsked,
    grid: PrefillGrid,
    machine: Machine,
    threads: Threads = 0,
    out: Annotated[Path | None, typer.Option(help="record to write (JSON)")] = None,
) -> None:
    """Dense and pruned prefill side by side: time per part, FLOP-ideal speed-up, KV bytes, memory."""
    from pruneopt.lab.prefill import presets
    from pruneopt.lab.prefill.run import picture_inputs
    from pruneopt.lab.prefill.table import everything
    from pruneopt.lab.records import prepare_file, read_record
    from pruneopt.models.load import dtype_of
    from pruneopt.spec.load import load_spec

    methods, keeps, batches = split(grid.method), budgets(grid.keep), counts(grid.batch)
    if methods is None:
        raise InputError("--method names no method")
    # The user's overrides come last and win; all specs are read before a model is built.
    specs = [load_spec(m, [f"budget.keep={k}", *(overrides or [])]) for m in methods for k in keeps]
    if out is not None:
        prepare_file(out)
    if asked.model:
        picture, text = asked.read()
        loaded, processor = machine.load(asked.model)
        options: dict[str, Any] = {
            "load": lambda: loaded, "inputs_of": picture_inputs(processor, picture, text=text)
        }  # fmt: skip
    else:
        presets.known(preset)
        options = {"load": lambda: presets.build(
            preset, device=machine.device, dtype=dtype_of(machine.dtype), attention=machine.attention
        )}  # fmt: skip
    with TemporaryDirectory() as scratch:
        path = out or Path(scratch) / "prefill.json"
        plan = _plan("prefill", preset=asked.model or preset, specs=specs, batches=batches,
                     repeats=grid.repeats, decode=grid.decode, file=path.name, **options)  # fmt: skip
        _measure({"prefill": plan}, path.parent, threads=threads)
        console().print(everything(read_record(path)).drawn())


@app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="folder of a run, finished or not")],
    into: Into = None,
) -> None:
    """Redo the tables and pictures of every study that a folder holds, from its records."""
    from pruneopt.lab.study import studies

    if not out.is_dir():
        raise InputError(f"folder {str(out)!r} does not exist")
    _report(out, list(studies()), into=into)


def _plan(name: str, **settings: Any) -> Any:
    from pruneopt.lab.study import study

    return study(name).plan(**settings)


def _measure(plans: dict[str, Any], out: Path, *, threads: int) -> None:
    """Measure every plan into one folder, which is known to be writable before the first begins."""
    from pruneopt.lab.environment import use_threads
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.study import study

    prepare_folder(out)
    use_threads(threads)
    for name, plan in plans.items():
        study(name).measure(plan, out, console=console())


def _report(out: Path, names: list[str], *, into: Path | None = None) -> None:
    """Show the reports of the records in `out`, write them beside, and between the marks of a page."""
    from pruneopt.lab.pages import splice
    from pruneopt.lab.records import prepare_folder, write_text
    from pruneopt.lab.study import study

    held = [name for name in names if study(name).holds(out)]
    if not held:
        raise InputError(f"{str(out)!r} holds no record of {', '.join(names)}; measure with `pruneopt bench`")
    if into is not None:
        _marked(into, held)
    prepare_folder(out)
    texts = {name: study(name).report(out, console=console()) for name in held}
    if into is not None:
        write_text(into, splice(into.read_text(encoding="utf-8"), texts.get))


def _marked(page: Path, names: list[str]) -> None:
    """Raise InputError unless `page` can be written and has marks for one of these tables."""
    from pruneopt.lab.pages import blocks
    from pruneopt.lab.records import prepare_file

    if not page.is_file():
        raise InputError(f"page {str(page)!r} does not exist")
    prepare_file(page)
    if not set(blocks(page.read_bytes().decode("utf-8", "replace"))) & set(names):
        raise InputError(f"page {str(page)!r} lacks lines <!-- begin: NAME --> for {', '.join(names)}")
