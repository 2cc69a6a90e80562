"""One worker at a time on each run folder, whichever process it is in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

CLAIMS = ".claims"


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Try to claim a run folder; yields whether this process has it.

    The operating system holds the claim and gives it back when its process ends, by whatever road; what a
    dead process left of a half-written run is removed by the next one to claim it.
    """
    claims = folder.parent / CLAIMS
    claims.mkdir(exist_ok=True)
    lock = FileLock(claims / f"{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        for scratch in folder.parent.glob(f".{escape(folder.name)}.*"):
            shutil.rmtree(scratch, ignore_errors=True)
        yield True
    finally:
        lock.release()
