"""Numbers in the README and the docs come from committed records, through this command.

`python -m pruneopt.lab.pages FILE...` replaces what stands between `<!-- begin: NAME -->` and
`<!-- end: NAME -->` by the report of the study NAME, and of a block `NAME-brief` by its short one; with
`--check` it only says which files are stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from pruneopt.errors import InputError
from pruneopt.lab.study import RECORDS, study

_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def splice(text: str, report: Callable[[str], str | None]) -> str:
    """`text` with every block NAME replaced by `report(NAME)`; a block stays as it is where that is None."""

    def fill(match: re.Match[str]) -> str:
        body = report(match["name"])
        return match[0] if body is None else f"{match[1]}\n\n{body.strip()}\n\n{match[3]}"

    return _BLOCK.sub(fill, text)


def blocks(text: str) -> list[str]:
    """The names of the blocks of a page."""
    return [match["name"] for match in _BLOCK.finditer(text)]


def render(text: str, records: Path = RECORDS) -> str:
    """`text` with every block made anew. Raises InputError for a block that no study renders."""
    return splice(text, lambda name: _committed(name, records))


def _committed(name: str, records: Path) -> str:
    whole = name.removesuffix("-brief")
    return study(name).committed(records) if whole == name else study(whole).brief(records)


def main(arguments: list[str]) -> int:
    """Returns 1 when `--check` finds a stale file. Raises InputError for a page that is not there."""
    check = "--check" in arguments
    stale = 0
    for name in (a for a in arguments if a != "--check"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"page {name!r} does not exist")
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale += 1
            print(f"{name} is stale" if check else f"{name} written")
            if not check:
                path.write_text(new, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
