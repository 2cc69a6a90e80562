"""A study: `measure -> record` and `record -> table`, two modules of one folder that meet in records only.

`run.py` has `Plan`, what is measured (checked when it is made, before any work), and
`measure(plan, out, *, console)`, which leaves records in the folder `out` and goes on where it stopped.
`table.py` has `HOME`, the folder of committed records, and `tables(out)`, a report of the records in a
folder, empty when there are none; it may have `brief(out)`, a few rows of it for a front page.  It does not
import `run.py`: tables are made anew on machines that could not measure them.  A folder of `lab/` with both
modules is a study, there is no other list.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from pruneopt.errors import InputError, nearest
from pruneopt.lab.records import write_text
from pruneopt.lab.tables import Piece, markdown, show

_HERE = Path(__file__).parent
RECORDS = _HERE.parents[1] / "experiments" / "records"


@dataclass(frozen=True)
class Study:
    """The two halves of the folder of this name; each is loaded when it is used."""

    name: str

    def plan(self, **settings: Any) -> Any:
        """What to measure. Raises a refusal of pruneopt for settings that cannot be measured."""
        return self._half("run").Plan(**settings)

    def measure(self, plan: Any, out: Path, *, console: Console) -> None:
        """Measure `plan` into the folder `out`."""
        self._half("run").measure(plan, out, console=console)

    def holds(self, out: Path) -> bool:
        """Whether a folder has records of this study, finished or not."""
        return bool(self._half("table").tables(out))

    def tables(self, out: Path) -> list[Piece]:
        """The report of the records in `out`. Raises InputError when there are none."""
        pieces: list[Piece] = self._half("table").tables(out)
        if not pieces:
            raise InputError(f"{str(out)!r} holds no records of the study {self.name!r}; measure it first")
        return pieces

    def markdown(self, out: Path) -> str:
        """The report of the records in `out`, as Markdown."""
        return markdown(self.tables(out))

    def committed(self, records: Path = RECORDS) -> str:
        """The report of the committed records, as Markdown."""
        return self.markdown(records / self._half("table").HOME)

    def brief(self, records: Path = RECORDS) -> str:
        """What a front page says of the committed records, as Markdown. Raises InputError where a study has
        no `brief(out)` beside its tables."""
        table = self._half("table")
        if not hasattr(table, "brief"):
            raise InputError(f"the study {self.name!r} has no short table; name the block {self.name!r}")
        return markdown(table.brief(records / table.HOME))

    def report(self, out: Path, *, console: Console) -> str:
        """Show the report of `out`, leave it there as `NAME.md` with its pictures; returns the Markdown."""
        pieces = self.tables(out)
        show(pieces, console)
        if draw := getattr(self._half("table"), "draw", None):
            draw(out)
        text = markdown(pieces)
        write_text(out / f"{self.name}.md", text + "\n")
        return text

    def _half(self, name: str) -> Any:
        return import_module(f"pruneopt.lab.{self.name}.{name}")


def studies() -> dict[str, Study]:
    """Every study there is, by name."""
    names = sorted(path.parent.name for path in _HERE.glob("*/run.py") if path.with_name("table.py").exists())
    return {name: Study(name) for name in names}


def study(name: str) -> Study:
    """A study by its name. Raises InputError for a name that none has."""
    if name not in studies():
        raise InputError(f"no table is called {name!r}{nearest(name, studies())}")
    return Study(name)
