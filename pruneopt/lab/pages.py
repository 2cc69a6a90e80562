"""Numbers in the README and the docs come from committed records, through this command.

`python -m pruneopt.lab.pages FILE...` replaces what stands between `<!-- begin: NAME -->` and
`<!-- end: NAME -->` by the table that NAME stands for; with `--check` it only says which files are stale.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from pruneopt.errors import InputError, nearest

# Block name -> "module:function"; each function takes the folder of committed records and returns Markdown.
BLOCKS = {
    "accuracy": "pruneopt.lab.tables:accuracy",
    "gap": "pruneopt.lab.tables:gap",
    "select": "pruneopt.lab.tables:selection",
    "solvers": "pruneopt.lab.tables:solvers",
    "subset": "pruneopt.lab.tables:subset",
    "targets": "pruneopt.lab.tables:targets",
}
RECORDS = Path(__file__).parents[2] / "experiments" / "records"
_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def render(text: str, records: Path = RECORDS) -> str:
    """`text` with every block made anew. Raises InputError for a block that nothing renders."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise InputError(f"no table is called {name!r}{nearest(name, BLOCKS)}")
        module, _, function = BLOCKS[name].partition(":")
        body = getattr(importlib.import_module(module), function)(records)
        return f"{match[1]}\n\n{body.strip()}\n\n{match[3]}"

    return _BLOCK.sub(fill, text)


def insert(page: Path, name: str, text: str) -> None:
    """Replace what stands between the begin and end marks of `name`."""
    old = page.read_text()
    marks = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    if not all(mark in old for mark in marks):
        raise InputError(f"{page} has no lines {marks[0]} and {marks[1]} to write between")
    pattern = re.escape(marks[0]) + r".*?" + re.escape(marks[1])
    page.write_text(re.sub(pattern, lambda _: f"{marks[0]}\n\n{text.strip()}\n\n{marks[1]}", old, flags=re.S))


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
