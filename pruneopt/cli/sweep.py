"""`sweep`: accuracy of the entries of a file over the embedded questions, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import OmegaConf

from pruneopt.cli.catalogue import console
from pruneopt.cli.progress import progress
from pruneopt.errors import SpecError, nearest
from pruneopt.spec import load_spec

_KEYS = ("label", "method", "overrides", "seeds", "seed_key")


def read_entries(path: Path) -> list[Any]:
    """Entries of a sweep file: `label`, `method` (or `dense`), `overrides`, and `seeds` with `seed_key`.

    An entry with `seeds: 5` becomes five, `label seed 0` to `label seed 4`, that set `seed_key`.
    Raises SpecError for unknown keys, unknown methods and labels that occur twice.
    """
    from pruneopt.eval.sweep import Entry

    if not path.is_file():
        raise SpecError(f"sweep file {str(path)!r} does not exist")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise SpecError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    rows = data.get("entries") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise SpecError(f"{path} must have a list called `entries`")
    found: list[Entry] = []
    for i, row in enumerate(rows):
        for key in row:
            if key not in _KEYS:
                raise SpecError(f"{path}: entries.{i}.{key} is unknown{nearest(key, _KEYS)}")
        label, method, overrides = row.get("label"), row.get("method"), list(row.get("overrides") or [])
        if not label or not method:
            raise SpecError(f"{path}: entries.{i} needs a label and a method")
        if method == "dense":
            found.append(Entry(label, None))
        elif row.get("seeds"):
            key = row.get("seed_key", "problem.scores.random.seed")
            found += [
                Entry(f"{label} seed {n}", load_spec(method, [*overrides, f"{key}={n}"]))
                for n in range(int(row["seeds"]))
            ]
        else:
            found.append(Entry(label, load_spec(method, overrides)))
    labels = [entry.label for entry in found]
    twice = sorted({x for x in labels if labels.count(x) > 1})
    if twice:
        raise SpecError(f"{path}: the label {twice[0]!r} occurs twice; labels name run folders")
    return found


def sweep_command(
    file: Annotated[Path, typer.Argument(help="a sweep file, such as experiments/accuracy.yaml")],
    out: Annotated[Path, typer.Option(help="folder for run folders")] = Path("runs"),
    questions: Annotated[int, typer.Option(help="questions to ask; 0 is all")] = 0,
    batch: Annotated[int, typer.Option(min=1)] = 12,
) -> None:
    """Run every entry of a file that is not finished yet, on the embedded model."""
    entries = read_entries(file)
    from pruneopt.demo.assets import load_model, load_questions
    from pruneopt.eval.accuracy import spread
    from pruneopt.eval.sweep import run_sweep

    asked = load_questions()
    asked = spread(asked, questions) if questions else asked
    model, processor = load_model()
    show = console()
    with progress(show, "questions", len(asked) * len(entries)) as step:
        folders = run_sweep(model, processor, asked, entries, out, batch, step)
    show.print(f"{len(folders)} runs in {out}; see them with: pruneopt table {out}")


def table_command(
    folder: Annotated[Path, typer.Argument(help="a folder of run folders")] = Path("runs"),
) -> None:
    """Print the accuracy table of a folder of runs, as Markdown."""
    from pruneopt.eval.tables import accuracy_of

    typer.echo(accuracy_of(folder))
