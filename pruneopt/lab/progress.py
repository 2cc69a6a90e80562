"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0  # seconds between plain lines


class Step(Protocol):
    """Say that `n` more are done; `words` about them are printed at once where there is no bar."""

    def __call__(self, n: int, words: str = "") -> None: ...


@contextmanager
def progress(console: Console, what: str, *, total: int) -> Iterator[Step]:
    """Yields `step(n, words)`, to be called with the number of things just finished."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n, words="": bar.update(task, advance=n, description=words or what)
        return
    done, last = 0, time.monotonic()

    def step(n: int, words: str = "") -> None:
        nonlocal done, last
        done += n
        if words or time.monotonic() - last > _EVERY:
            last = time.monotonic()
            console.print(f"{what}: {done} of {total} {words}".rstrip(), markup=False, highlight=False)

    yield step
