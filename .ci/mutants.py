"""Run the mutants and write what survived to tests/mutants/survivors.md.

`python .ci/mutants.py` runs the mutants that have no verdict yet, with `[PATTERN...]` all that match, and
with `--again` the survivors, for new tests to judge; `--report` only reads the verdicts that are there.
Fails when a module has fewer than 90 percent killed, or when a survivor is not listed in
tests/mutants/equivalent.toml.  Lines there that no survivor has any more are printed, to be deleted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

FOLDER = Path("tests/mutants")
GOAL = 0.9
KILLED = ("killed", "timeout", "segfault")
WAITS = "not run"


def survived(status: str) -> bool:
    """Whether a mutant was judged and no test noticed it."""
    return status not in (*KILLED, WAITS)


def verdicts() -> dict[str, dict[str, str]]:
    """Status of every mutant by module; WAITS where it has none yet."""
    out = {}
    for path in sorted(Path("mutants").rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        found = {name: WAITS if code is None else status_by_exit_code[code] for name, code in codes.items()}
        out[str(path.relative_to("mutants")).removesuffix(".meta")] = found
    return out


def change(mutant: str) -> str:
    """`function: the line as the mutant has it`, the name of a survivor that outlives renumbering."""
    lines = get_diff_for_mutant(mutant).splitlines()
    new = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    function = re.sub(r"(?<=\.)x_|xǁ|__mutmut_\d+$", "", mutant.removeprefix("pruneopt.")).replace("ǁ", ".")
    return f"{function}: {' '.join(new)}"


def commit() -> str:
    """The commit that was judged, marked where the tree has changes besides."""
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def report(found: dict[str, dict[str, str]]) -> bool:
    """Write the table and the survivors; True when the goal is met."""
    reasons = tomllib.loads((FOLDER / "equivalent.toml").read_text())["reason"]
    known = {line: i for i, r in enumerate(reasons) for line in r.get("mutants", "").strip().splitlines()}
    forms = [(re.compile(form), i) for i, r in enumerate(reasons) for form in r.get("forms", ())]
    rows, equal, alive, good, seen = [], Counter[int](), [], True, set[str]()
    for module, states in found.items():
        changes = [change(name) for name, status in states.items() if survived(status)]
        waiting = sum(status == WAITS for status in states.values())
        why = {text: known.get(text, next((i for f, i in forms if f.search(text)), None)) for text in changes}
        same = [text for text in changes if why[text] is not None]
        equal.update(why[text] for text in same)
        seen.update(changes)
        alive += [text for text in changes if why[text] is None]
        total = len(states) - waiting
        killed = total - len(changes)
        good &= killed >= GOAL * total
        rows.append((module, killed, total, len(same), len(changes) - len(same), waiting))
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    lines = ["# Mutants", "", f"Written by `make mutants` at commit {commit()}; see docs/testing.md.", ""]
    lines += ["| module | killed | of | share | equivalent | other survivors | not run |", "|" + " --- |" * 7]
    lines += [
        f"| {module} | {killed} | {total} | {killed / max(1, total):.1%} | {same} | {others} | {waiting} |"
        for module, killed, total, same, others, waiting in rows
    ]
    lines += [
        "",
        "## Survivors that change nothing",
        "",
        "| how many | why no test can tell |",
        "|" + " --- |" * 2,
    ]
    lines += [f"| {equal[i]} | {reason['why']} |" for i, reason in enumerate(reasons)]
    lines += ["", "## Other survivors", ""]
    lines += [f"- `{text}`" for text in alive] or ["None."]
    (FOLDER / "survivors.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    unsure = tuple(
        m[len("pruneopt/") : -2].replace("/", ".") for m, s in found.items() if WAITS in s.values()
    )
    stale = sorted(line for line in known.keys() - seen if not line.startswith(unsure))
    print("\n".join(["", "No survivor is like these lines of equivalent.toml:", *stale] if stale else []))
    return good and not alive


def main(arguments: list[str]) -> int:
    names = [name for name in arguments if not name.startswith("--")]
    if "--again" in arguments:
        names += [n for states in verdicts().values() for n, s in states.items() if survived(s)]
    if "--report" not in arguments:
        # Without the shape checks of the tests: they would wrap what mutmut wraps, and slow every mutant.
        plain = {**os.environ, "PRUNEOPT_SHAPES": "off"}
        subprocess.run([str(Path(sys.executable).parent / "mutmut"), "run", *names], check=True, env=plain)
    return 0 if report(verdicts()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
