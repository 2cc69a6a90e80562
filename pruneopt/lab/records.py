"""Files of records: written whole or not at all, and checked before any work is done for them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruneopt.errors import InputError


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


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


def write_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a record as JSON, whole or not at all."""
    return write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record. Raises InputError when it is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"record {str(path)!r} is missing; measure it with `pruneopt bench`") from error
    except (ValueError, OSError) as error:
        raise InputError(f"record {str(path)!r} is damaged ({error}); measure it again") from error
    if not isinstance(record, dict):
        raise InputError(f"record {str(path)!r} holds no mapping; measure it again")
    return record
