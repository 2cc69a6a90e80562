"""What is solved on the way to one selection.

Parts keep no state and may stand several levels inside others, so a part that solves a problem writes it here
instead of handing it up through every level.  The pruner opens a ledger, and reads it when all is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruneopt.parts._part import Part
    from pruneopt.problems.solution import Solution


def _no_lap(name: str) -> None:
    pass


@dataclass
class Ledger:
    """Solutions by the part that asked for them, and what else one selection has to say.

    `check`: look at the values of problems, which waits for a GPU.  `lap(name)` tells the clock that a step
    has ended.  `notes`: sentences about how far the result can be trusted.
    """

    check: bool = False
    lap: Callable[[str], None] = _no_lap
    solved: list[tuple[Part, Solution]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_open: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def ledger() -> Ledger:
    """The open ledger; for a part that is called by itself one that nobody reads."""
    return _open.get() or Ledger()


@contextmanager
def opened(book: Ledger) -> Iterator[Ledger]:
    """Parts that are called inside write into `book`."""
    token = _open.set(book)
    try:
        yield book
    finally:
        _open.reset(token)
