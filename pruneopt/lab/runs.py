"""Runs of a study on samples: one folder a run while the study runs, two files when it is packed.

Folder: `spec.yaml` is the resolved spec, `record.json` says with what and how fast it ran, `samples.parquet`
has one row per sample.  Packed: `runs.jsonl` has one line a run, `samples.parquet` the samples of all of
them, and the column `run` says whose a row is.  Both say the same and are read by the same functions, by the
path of the run's folder.  Records are never edited.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from pruneopt.errors import InputError
from pruneopt.lab.claims import CLAIMS, claim
from pruneopt.lab.records import write_text

_FILES = ("spec.yaml", "record.json", "samples.parquet")
_INDEX, _SAMPLES, _OF = "runs.jsonl", "samples.parquet", "run"
_WAIT = 0.5  # seconds between looks at what other processes run
Job = TypeVar("Job")


class Run(NamedTuple):
    """What a run says of itself, its samples in order, and the text of its spec."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]
    spec: str


def finished(folder: Path) -> bool:
    """Finished means present and complete, as a folder or packed beside it."""
    # The folder first: packing removes it only after the other two files are there.
    return _whole(folder) or folder.name in _index(folder.parent)


def run_each(jobs: Mapping[Path, Job], run: Callable[[Job, Path], None], *, skip: Callable[[], None]) -> None:
    """Run the job of every folder that is not finished; `skip` is called for one that is.

    Folders that another process is running are left to it; when they are all that is left this one waits, and
    takes over those whose process died.
    """
    left = dict(jobs)
    while left:
        before = len(left)
        for folder, job in list(left.items()):
            with claim(folder) as mine:
                if not mine:
                    continue
                if finished(folder):
                    skip()
                else:
                    run(job, folder)
                del left[folder]
        if len(left) == before:
            time.sleep(_WAIT)


def run_folders(out: Path) -> list[Path]:
    """The paths of all finished runs of a study, by name, packed or not."""
    if not out.is_dir():
        return []
    loose = {path.name for path in out.iterdir() if _whole(path)}
    return [out / name for name in sorted(loose | _index(out).keys())]


def write_run(
    folder: Path, spec: str, *, record: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Path:
    """Write a run folder atomically. Raises InputError when the run exists: records are never edited."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists() or finished(folder):
        raise InputError(f"record {str(folder)!r} exists; records are never edited, choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (scratch / "spec.yaml").write_text(spec, encoding="utf-8")
        (scratch / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        pq.write_table(pa.Table.from_pylist([dict(s) for s in samples]), scratch / "samples.parquet")
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def read_run(folder: Path) -> Run:
    """A finished run. Raises InputError for anything else."""
    if _whole(folder):
        try:
            return _loose(folder)
        except InputError:
            if _whole(folder):  # otherwise another process has just packed it
                raise
    return _packed(folder)


def pack(out: Path) -> list[Path]:
    """Pack every finished run folder of a study; returns the folders that are gone.

    Nothing is removed before what was written has been read back and is the same, value for value.  May be
    stopped at any moment and run again, and may be run beside processes that work on the same study.

    Raises
    ------
    InputError
        For a folder that holds more than a run, a packed run of the same name that says something else, and
        samples whose columns are of other types than those of the runs before them.
    """
    loose = {folder: read_run(folder) for folder in run_folders(out) if _whole(folder)}
    for folder in loose:
        extra = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
        if extra:
            raise InputError(f"{str(folder)!r} holds {', '.join(extra)} beside its run; move that away")
    claims = out / CLAIMS
    claims.mkdir(exist_ok=True)
    with FileLock(claims / "pack.lock"):
        for left in out.glob(".*.packed"):  # by a process that was stopped while it removed them
            shutil.rmtree(left)
        loose = {folder: run for folder, run in loose.items() if _whole(folder)}  # not packed meanwhile
        packed = _index(out)
        _add(out, {folder.name: run for folder, run in loose.items() if folder.name not in packed})
        for folder, run in loose.items():
            # repr tells 1 from 1.0 and True, and finds NaN equal to itself
            if repr(_packed(folder)) != repr(run):
                raise InputError(f"{str(folder)!r} differs from the packed run of its name; keep one of them")
        for folder in loose:
            gone = folder.with_name(f".{folder.name}.packed")  # a name that readers and claims ignore
            os.rename(folder, gone)
            shutil.rmtree(gone)
    return list(loose)


def _whole(folder: Path) -> bool:
    """Names with a leading dot are of runs being written."""
    return not folder.name.startswith(".") and all((folder / name).is_file() for name in _FILES)


def _index(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of the packed runs, by name. Raises InputError when they are damaged."""
    path = out / _INDEX
    if not path.is_file():
        return {}
    with _damaged(path):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line[_OF]: line for line in lines}


def _loose(folder: Path) -> Run:
    import pyarrow.parquet as pq

    with _damaged(folder):
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        samples = pq.read_table(folder / "samples.parquet").to_pylist()
        return Run(record, samples, (folder / "spec.yaml").read_text(encoding="utf-8"))


def _packed(folder: Path) -> Run:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    line = _index(folder.parent).get(folder.name)
    if line is None:
        raise InputError(f"{str(folder)!r} is not a finished run; run it again")
    path = folder.parent / _SAMPLES
    with _damaged(path):
        table = pq.read_table(path, filters=pc.field(_OF) == folder.name)
        samples = table.select(line["columns"]).to_pylist()
        if len(samples) != line["samples"]:
            raise ValueError(f"{len(samples)} samples instead of {line['samples']}")
    return Run(line["record"], samples, line["spec"])


def _add(out: Path, runs: Mapping[str, Run]) -> None:
    """Write the samples first: the lines are what makes them count, so a crash in between changes nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not runs:
        return
    lines, tables = _index(out), []
    if lines:
        known = pq.read_table(out / _SAMPLES)
        tables.append(known.filter(pc.is_in(known[_OF], pa.array(list(lines)))))
    for name, run in sorted(runs.items()):
        columns = list(run.samples[0]) if run.samples else []
        if _OF in columns:
            raise InputError(
                f"samples of {name!r} have a column {_OF!r}, which packed samples use; rename it"
            )
        lines[name] = {
            _OF: name, "spec": run.spec, "columns": columns, "samples": len(run.samples), "record": run.record
        }  # fmt: skip
        tables.append(pa.Table.from_pylist([{_OF: name, **sample} for sample in run.samples]))
    part = out / f"{_SAMPLES}.part"
    try:
        pq.write_table(pa.concat_tables(tables, promote_options="default"), part, compression="zstd")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"samples in {str(out)!r} are of different types ({error}); keep one kind"
        ) from error
    os.replace(part, out / _SAMPLES)
    write_text(out / _INDEX, "".join(json.dumps(lines[name]) + "\n" for name in sorted(lines)))


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turn what a broken file raises into one InputError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{str(path)!r} is damaged ({error}); remove it and run it again") from error
