"""The one writer of tables: a header and rows of text, as Markdown for pages or drawn on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Drawn


@dataclass(frozen=True)
class Table:
    """A header and rows of text; `title` is for terminals, where no page stands around it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)

    def drawn(self) -> Drawn:
        """The table for a rich console."""
        table = Drawn(*self.header, title=self.title or None)
        for row in self.rows:
            table.add_row(*row)
        return table


Piece = Table | str  # a report is made of tables and of paragraphs between them


def markdown(pieces: Iterable[Piece]) -> str:
    """A report as Markdown."""
    return "\n\n".join(piece if isinstance(piece, str) else piece.markdown() for piece in pieces)


def show(pieces: Iterable[Piece], console: Console) -> None:
    """Draw a report on a terminal; what does not wrap there is not wrapped in a file either."""
    for piece in pieces:
        if isinstance(piece, str):
            console.print(piece, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(piece.drawn())


def number(x: float | None, digits: int = 2) -> str:
    """A number with few digits, in scientific notation when it is very small or large; empty for none."""
    if x is None or math.isnan(x):
        return ""
    if x != 0 and (abs(x) < 1e-3 or abs(x) >= 1e4):
        return f"{x:.1e}"
    return f"{x:.{digits + 1}g}"
