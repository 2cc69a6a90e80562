"""Run folders: one per spec hash, written once, complete or absent.

`spec.yaml` is the resolved spec, `record.json` says with what and how fast it ran, `samples.parquet` has one
row per sample.  Tables and pictures are made from these by commands.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pruneopt
from pruneopt.errors import InputError

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "POT", "cvxpy", "highspy", "omegaconf")


def environment() -> dict[str, Any]:
    """Versions, machine, threads, commit and whether the tree was dirty."""
    import torch

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "pruneopt": pruneopt.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **_commit(),
    }


def _commit() -> dict[str, Any]:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def prepare_folder(folder: Path) -> Path:
    """Make a folder and try to write in it, before any work is done for it.

    Raises InputError when that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write in folder {str(folder)!r} ({error.strerror}); choose another one"
        ) from error
    return folder


def prepare_file(path: Path) -> Path:
    """Make the folder of a file and see that the file can be written. Raises InputError otherwise."""
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write file {str(path)!r}; choose another one")
    prepare_folder(path.parent)
    return path


def finished(folder: Path) -> bool:
    """Finished means present and complete; names with a leading dot are of runs being written."""
    return not folder.name.startswith(".") and all(
        (folder / name).is_file() for name in ("spec.yaml", "record.json", "samples.parquet")
    )


def write_run(
    folder: Path, spec_yaml: str, record: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Path:
    """Write a run folder atomically. Raises InputError when it exists: records are never edited."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists():
        raise InputError(f"record {str(folder)!r} exists; records are never edited, choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (scratch / "spec.yaml").write_text(spec_yaml, encoding="utf-8")
        (scratch / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        pq.write_table(pa.Table.from_pylist([dict(s) for s in samples]), scratch / "samples.parquet")
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Record and samples of a finished run. Raises InputError for anything else."""
    import pyarrow.parquet as pq

    if not finished(folder):
        raise InputError(f"{str(folder)!r} is not a finished run; run it again")
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return record, pq.read_table(folder / "samples.parquet").to_pylist()
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"run {str(folder)!r} is damaged ({error}); remove it and run it again") from error
