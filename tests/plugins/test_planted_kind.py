"""A kind of problem of another package: listed, checked, solved and used in a spec without an edit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pruneopt

CORE = Path(pruneopt.__file__).parent

PLUGIN = """
import torch
from pruneopt.problems.kinds import Kind
from pruneopt.problems.kinds._program import choosing

class Squares(Kind):
    \"\"\"Sum of the squares of the scores.\"\"\"
    name = "squares"
    needs = frozenset({"unary"})
    scaled = frozenset()

    def _worth(self, problem):
        return problem.unary.double().square().masked_fill(~problem.real, 0)

    def value(self, problem, keep):
        return (self._worth(problem) * keep).sum(1)

    def swap_gains(self, problem, keep):
        worth = self._worth(problem)
        return worth[:, None, :] - worth[:, :, None]

    def linear(self, problem):
        program = choosing(problem)
        program.c = self._worth(problem)[0].numpy()[program.place]
        return program
"""

USE = """
import torch
from pruneopt import load_spec, select
from pruneopt.cli.main import main
signals = {"features": torch.tensor([0.1, -3.0, 2.0, 0.5, -2.5, 1.0])[None, :, None]}
less = {"kind": "token_norm", "weight": -1}
for solver in ("local_search", "milp", "brute_force"):
    spec = load_spec({"insertion": "post_encoder", "budget": {"keep": 2}, "solver": solver,
                      "problem": {"kind": "squares", "scores": {"less": less}}})
    print(solver, select(spec, signals).indices[0].tolist())
for words in (["list", "kinds"], ["check", "kinds/squares"]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
"""


def test_a_kind_of_another_package_needs_no_edit(tmp_path: Path) -> None:
    (tmp_path / "planted_squares.py").write_text(PLUGIN)
    info = tmp_path / "planted_squares-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-squares\nVersion: 1.2\n")
    points = ("[pruneopt.kinds]", "squares = planted_squares:Squares", "lost = planted_nowhere:Lost")
    (info / "entry_points.txt").write_text("\n".join(points))

    done = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{CORE.parent}", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["local_search [1, 4]", "milp [1, 4]", "brute_force [1, 4]"]
    assert "Sum of the squares of the scores." in done.stdout and "planted-squares 1.2" in done.stdout
    assert "planted_nowhere" in done.stdout  # the broken one is named and hides nothing
    assert lines[-1] == "problem kind squares: conforms, 10 of 10 checks pass", lines[-1]
