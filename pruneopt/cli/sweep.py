"""`sweep`, `table`, `records`: accuracy of the entries of a file over the embedded questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruneopt.cli.catalogue import console
from pruneopt.cli.options import Machine, grouped
from pruneopt.errors import InputError, PruneoptError, SpecError, located, nearest
from pruneopt.spec.load import load_spec, touches
from pruneopt.spec.schema import Spec
from pruneopt.spec.yamlfile import read_yaml

if TYPE_CHECKING:
    from pruneopt.lab.accuracy.run import Entry

records = typer.Typer(help="Keep what was measured.", no_args_is_help=True)
_KEYS = ("label", "method", "overrides", "seeds", "seed_key")


def read_entries(path: Path) -> list[Entry]:
    """Entries of a sweep file: `label`, `method` (or `dense`), `overrides`, and `seeds` with `seed_key`.

    An entry with `seeds: 5` becomes five, `label seed 0` to `label seed 4`, that set `seed_key`.
    Raises SpecError with file, line, column and entry for anything that is unknown, missing, of the wrong
    kind, or labelled twice.
    """
    if not path.is_file():
        raise SpecError(f"sweep file {str(path)!r} does not exist")
    file = read_yaml(path, str(path))
    rows = file.data.get("entries") if isinstance(file.data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise SpecError(f"{path} must have a list called `entries`")
    for key in file.data:
        if key != "entries":
            raise SpecError(f"{file.place(str(key))}: unknown key {key}; a sweep file has `entries` only")
    found: list[Entry] = []
    for i, row in enumerate(rows):
        name = f" ({row['label']!r})" if isinstance(row, dict) and row.get("label") else ""
        try:
            found += _entries(row, f"{file.place(f'entries.{i}')}: entry {i + 1}{name}")
        except PruneoptError as error:
            place = file.place(f"entries.{i}.{error.key}".rstrip("."))
            raise located(error, f"{place}: entry {i + 1}{name}") from error
    # Over all entries at once: seeds make labels that another entry may have, too.
    first: dict[str, Entry] = {}
    for entry in found:
        if entry.label in first:
            raise SpecError(f"{entry.where}: the label {entry.label!r} occurs twice; labels name run folders")
        first[entry.label] = entry
    return found


def _entries(row: Any, where: str) -> list[Entry]:
    """The entries of one row. Raises SpecError whose `key` is one of the row's."""
    from pruneopt.lab.accuracy.run import Entry

    if not isinstance(row, dict):
        raise SpecError(f"an entry is a mapping with a label and a method, got {row!r}")
    for key in row:
        if key not in _KEYS:
            raise SpecError(f"unknown key {key}{nearest(str(key), _KEYS)}", key=str(key))
    label, method, overrides = (row.get(key) for key in ("label", "method", "overrides"))
    if not label or not method:
        raise SpecError("an entry needs a label and a method")
    for key in ("label", "method", "seed_key"):
        if not isinstance(row.get(key, ""), str):
            raise SpecError(f"{key} must be text, got {row[key]!r}", key=key)
    if label.startswith("."):
        raise SpecError(f"label {label!r} starts with a dot, which hides its run folder", key="label")
    overrides = [] if overrides is None else overrides
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise SpecError(f"overrides must be a list of key.path=value, got {overrides!r}", key="overrides")
    seeds = row.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise SpecError(f"seeds must be a whole number from 1, got {seeds!r}", key="seeds")
    if method == "dense":
        if overrides or seeds:
            raise SpecError(
                "dense has neither overrides nor seeds", key="overrides" if overrides else "seeds"
            )
        return [Entry(label, None, where)]
    if seeds is None:
        return [Entry(label, _spec(method, overrides), where)]
    seed = row.get("seed_key", "problem.scores.random.seed")
    return [Entry(f"{label} seed {n}", _spec(method, overrides, f"{seed}={n}"), where) for n in range(seeds)]


def _spec(method: str, overrides: list[str], *seed: str) -> Spec:
    """The spec of an entry; a refusal says which of the entry's keys is to blame."""
    try:
        return load_spec(method, [*overrides, *seed])
    except PruneoptError as error:
        for key, given in (("overrides", overrides), ("seeds", seed)):
            if any(touches(override, error.key) for override in given):
                raise type(error)(str(error), key=key) from error
        raise type(error)(str(error), key="method") from error


@grouped
def sweep_command(
    *,
    file: Annotated[Path, typer.Argument(help="a sweep file, such as experiments/accuracy.yaml")],
    out: Annotated[Path, typer.Option(help="folder for run folders; several processes may share it")] = Path(
        "runs"
    ),
    questions: Annotated[int, typer.Option(min=0, help="questions to ask; 0 is all")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="questions per forward pass")] = 12,
    machine: Machine,
) -> None:
    """Run every entry of a file that is not finished yet, on the embedded model."""
    entries = read_entries(file)  # a mistake in the last entry is told before the first one runs
    from pruneopt.demo.assets import load_questions
    from pruneopt.lab.accuracy.answer import spread
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.study import study

    prepare_folder(out)
    asked = load_questions()
    asked = spread(asked, questions) if questions else asked
    model, processor = machine.load("demo")
    show, accuracy = console(), study("accuracy")
    plan = accuracy.plan(model=model, processor=processor, questions=asked, entries=entries, batch=batch)
    accuracy.measure(plan, out, console=show)
    show.print(f"{len(entries)} runs in {out}; see them with: pruneopt table {out}")


def table_command(
    folder: Annotated[Path, typer.Argument(help="a folder of runs")] = Path("runs"),
) -> None:
    """Print the accuracy table of a folder of runs, as Markdown."""
    from pruneopt.lab.study import study

    typer.echo(study("accuracy").markdown(folder))


@records.command("pack")
def pack_command(
    folder: Annotated[Path, typer.Argument(help="a folder of run folders")] = Path("runs"),
) -> None:
    """Pack finished run folders into `runs.jsonl` and `samples.parquet`; what is not finished stays."""
    from pruneopt.lab.records import prepare_folder
    from pruneopt.lab.runs import pack, run_folders

    if not run_folders(folder):
        raise InputError(f"{str(folder)!r} holds no finished run; `pruneopt sweep` makes them")
    prepare_folder(folder)
    packed = len(pack(folder))
    typer.echo(f"{packed} run folders packed; {folder} holds {len(run_folders(folder))} runs in two files")
