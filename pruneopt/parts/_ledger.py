"""What is solved on the way to one selection.

Parts keep no state and may stand several levels inside others, so a part that solves a problem writes it here
instead of handing it up through every level.  The pruner opens a ledger, and reads it when all is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from pruneopt.parts._part import Part
    from pruneopt.problems.solution import Solution


T = TypeVar("T")


def _no_lap(name: str) -> None:
    pass


@dataclass
class Ledger:
    """Solutions by the part that asked for them, and what else one selection has to say.

    `check`: look at the values of problems, which waits for a GPU.  `lap(name)` tells the clock that a step
    has ended.  `notes`: sentences about how far the result can be trusted.  `protects`: the part that names
    the protected tokens, where one does.  `shared`: what several parts read and one has computed (`once`).
    """

    check: bool = False
    lap: Callable[[str], None] = _no_lap
    solved: list[tuple[Part, Solution]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    protects: Part | None = None
    shared: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)


_open: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def ledger() -> Ledger:
    """The open ledger; for a part that is called by itself one that nobody reads."""
    return _open.get() or Ledger()


def once(make: Callable[[], T], *key: Hashable, of: tuple[Tensor, ...]) -> T:
    """What `make` gives, computed by the first part that asks for `key` in one selection.

    `key` and the tensors `of`, told apart by identity, are all that the result depends on.  Without an open
    ledger, where a part is called by itself, it is computed every time.
    """
    book = _open.get()
    if book is None:
        return make()
    key = (*key, *map(id, of))
    if key not in book.shared:
        book.shared[key] = of, make()  # held, so that no other tensor gets their identity
    found: T = book.shared[key][1]
    return found


@contextmanager
def opened(book: Ledger) -> Iterator[Ledger]:
    """Parts that are called inside write into `book`."""
    token = _open.set(book)
    try:
        yield book
    finally:
        _open.reset(token)
