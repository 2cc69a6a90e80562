"""Every option of every command with a bad value: one line that begins with `error:`, exit code 2, no work.

The table below must name every option there is, so a new option without a bad value fails here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from pruneopt.cli.main import app, main

ASK = ["--model", "demo", "--image", "ok.png", "--prompt", "what ?"]
# command -> (arguments that are good, {parameter: bad arguments}); `_` flags take no value
GOOD: dict[str, list[str]] = {
    "": [],
    "list": [],
    "show": ["topv"],
    "plugins": [],
    "demo": [],
    "run": ASK,
    "sweep": ["sweep.yaml"],
    "table": ["runs"],
    "records pack": ["runs"],
    "cross": ["--costs", "cosine_distance", "--solvers", "sinkhorn"],
    "check": ["token_norm"],
    "bench solvers": [],
    "bench targets": [],
    "bench select": [],
    "bench notch": [],
    "bench released": [],
    "bench price": [],
    "bench prefill": ["--preset", "tiny"],
    "bench report": ["runs"],
}
_OVERRIDES = [
    ["budget.kep=1"], ["budget.keep=0"], ["budget.keep=["], ["budget.keep"], ["=1"], ["budget.keep=@"],
    ["steps.9=drop_all"], ["solver=nosuch"], ["problem=3"], ["budget.keep=${x}"], ["budget.keep=nan"],
]  # fmt: skip
_METHOD = [["nosuch"], [""], ["binary.yaml"], ["broken.yaml"], ["ok.png"], ["none.yaml"], ["folder.yaml"]]
_OUT = [["file/x"], ["file"], ["/proc/nothing/x"]]
_COUNT = [["-5"], ["x"], ["1.5"], [""]]
_COUNTS = [["-5"], ["0"], ["x"], [","], ["64,x"], ["1.5"], [""]]
_BUDGETS = [["0"], ["-1"], ["1.5"], ["x"], [""], ["nan"], ["inf"]]
_NAMES = [["nosuch"], ["sinkhorn,nosuch"]]
_IMAGE = [["none.png"], ["file"], ["empty.png"], ["folder.yaml"], ["binary.yaml"]]
_MACHINE = {
    "device": [["gpu"], ["cuda:99"], [""], ["xpu"], ["meta"]],
    "dtype": [["flaot32"], ["int8"], [""]],
    "attention": [["flash9"], [""], ["paged|eager"]],
}
_FLAG = [["--FLAG=maybe"]]
BAD: dict[str, dict[str, list[list[str]]]] = {
    "": {"version": _FLAG},
    "list": {"kind": [["cost"], [""]]},
    "show": {"method": _METHOD, "overrides": _OVERRIDES},
    "plugins": {"all_parts": [["--all=1"]]},
    "demo": {"overrides": _OVERRIDES, "method": _METHOD, "out": _OUT, "questions": _COUNT, **_MACHINE},
    "run": {
        "model": [["nosuch/folder"], [""], ["file"], ["folder.yaml"]],
        "image": _IMAGE,
        "prompt": [[""], [" "], ["<image> and <image>"]],
        "overrides": _OVERRIDES,
        "method": _METHOD,
        "out": _OUT,
        "max_new_tokens": [*_COUNT, ["0"]],
        "trust_remote_code": _FLAG,
        **_MACHINE,
    },
    "sweep": {
        "file": [["none.yaml"], ["binary.yaml"], ["broken.yaml"], ["folder.yaml"], ["bad-entry.yaml"]],
        "out": _OUT,
        "questions": _COUNT,
        "batch": [*_COUNT, ["0"]],
        **_MACHINE,
    },
    "table": {"folder": [["none"], ["file"], ["damaged"]]},
    "records pack": {"folder": [["none"], ["file"], ["folder.yaml"], ["damaged"]]},
    "cross": {
        "costs": _NAMES, "scores": _NAMES, "kernels": _NAMES, "solvers": _NAMES, "readouts": _NAMES,
        "insertions": _NAMES,
        "keep": [*_BUDGETS, ["0.5,0.25"]],
        "signals": [["none.st"], ["file"], ["folder.yaml"], ["binary.yaml"]],
        "model": [["nosuch/folder", "--image", "ok.png"], ["demo", "--signals", "file"], ["nosuch/folder"]],
        "image": [[*image, "--model", "demo"] for image in _IMAGE],
        "prompt": [[" ", "--model", "demo"]],
        "run": _FLAG,
        "illegal": _FLAG,
        **{key: [[value[0], "--model", "demo"] for value in values] for key, values in _MACHINE.items()},
    },
    "check": {
        "targets": [
            ["nosuch"], ["none.py"], ["file"], [""], ["../x"], ["syntax.py"], ["raises.py"], ["empty.py"],
            ["nosuch.module:Class"], ["pruneopt:nosuch"], ["folder.yaml"],
        ],
        "param": [["x"], ["=1"], ["nosuch=1"], ["x=["]],
        "expect": [["x"], ["=1"], ["nosuch=because"]],
        "all_checks": [["--all=1"]],
    },
    "bench solvers": {
        "sizes": _COUNTS, "batch": _COUNTS, "families": _NAMES, "solvers": _NAMES, "out": _OUT,
        "problems": [["nosuch"], [""]], "repeats": [*_COUNT, ["0"]], "budget": [["-1"], ["x"]],
        "threads": _COUNT,
    },
    "bench targets": {"out": _OUT, "threads": _COUNT},
    "bench select": {
        "out": _OUT, "methods": _NAMES, "sizes": [*_COUNTS, ["8,16"]], "batch": [*_COUNT, ["0"]],
        "keep": [*_COUNT, ["0"], ["1000"]], "repeats": [*_COUNT, ["0"]], "threads": _COUNT, "gap": _FLAG,
        "pictures": [*_COUNT, ["0"], ["100000", "--gap"]], "time_limit": [["-1"], ["x"]],
        "into": [["none.md"], ["file"], ["folder.yaml"], ["binary.yaml"]],
        "report": [["--report=1"], ["--report", "--out", "none"]],
    },
    "bench notch": {
        "out": _OUT, "methods": [["nosuch"], ["divprune,nosuch"]], "keep": [*_COUNTS, ["1000"]],
        "questions": [*_COUNT, ["0"]], "bounded": _COUNT, "threads": _COUNT,
    },
    "bench released": {
        "out": _OUT, "methods": _NAMES, "seconds": [["-1"], ["x"]], "threads": _COUNT,
        "into": [["none.md"], ["file"], ["folder.yaml"], ["binary.yaml"]],
    },
    "bench price": {
        "out": _OUT, "pictures": [*_COUNT, ["0"], ["7"], ["100000"]], "threads": _COUNT,
        "into": [["none.md"], ["file"], ["folder.yaml"], ["binary.yaml"]],
        "report": [["--report=1"], ["--report", "--out", "none"]],
    },
    "bench prefill": {
        "overrides": _OVERRIDES, "preset": [["nosuch"], [""]],
        "model": [["nosuch/folder", "--image", "ok.png"]],
        "image": [[*image, "--model", "demo"] for image in _IMAGE], "prompt": [[" ", "--model", "demo"]],
        "method": [*_METHOD[:1], *_METHOD[2:], ["topv,nosuch"], [","]], "keep": _BUDGETS, "batch": _COUNTS,
        "repeats": [*_COUNT, ["0"]], "decode": _COUNT, "threads": _COUNT,
        "out": [["file/x.json"], ["folder.yaml"]],
        **_MACHINE,
    },
    "bench report": {"out": [["none"], ["file"], ["folder.yaml"]], "into": [["none.md"], ["file"]]},
}  # fmt: skip


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it."""
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {child}".strip())


TREE = {name: c for name, c in commands(typer.main.get_command(app)) if name not in ("bench", "records")}


def cases() -> Iterator[Any]:
    """`(command, words)` of every bad value."""
    for name, options in BAD.items():
        params = {p.name: p for p in TREE[name].params}
        for option, values in options.items():
            for value in values:
                param = params[option]
                if value[0].startswith("--"):
                    words = [w.replace("--FLAG", param.opts[0]) for w in value]
                elif param.param_type_name == "option":
                    words = [param.opts[0], *value]
                else:
                    words = value
                if param.param_type_name == "argument" and option != "overrides":
                    line = [*name.split(), *words]  # in place of the good argument
                else:
                    line = [*name.split(), *GOOD[name], *words]
                yield pytest.param(
                    line, id=" ".join(line[:2] if name.count(" ") else line[:1]) + f" {option} {value}"
                )


def test_the_table_names_every_option_of_every_command() -> None:
    assert set(TREE) == set(GOOD) == set(BAD)
    for name, command in TREE.items():
        there = {p.name for p in command.params} - {"help"}
        assert there == set(BAD[name]), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good picture and sweep, and with files of every wrong kind."""
    here = tmp_path_factory.mktemp("bad")
    Image.new("RGB", (48, 48), (90, 120, 30)).save(here / "ok.png")
    (here / "file").write_text("hello")
    (here / "empty.png").touch()
    (here / "binary.yaml").write_bytes(bytes(range(256)))
    (here / "broken.yaml").write_text("entries: [\nname: {")
    (here / "folder.yaml").mkdir()
    (here / "sweep.yaml").write_text("entries:\n  - {label: dense, method: dense}\n")
    (here / "bad-entry.yaml").write_text("entries:\n  - {label: a, method: nosuch}\n")
    (here / "syntax.py").write_text("def (")
    (here / "raises.py").write_text("raise ValueError('two\\nlines')")
    (here / "empty.py").touch()
    (here / "damaged" / "run").mkdir(parents=True)
    for name in ("spec.yaml", "record.json", "samples.parquet"):
        (here / "damaged" / "run" / name).write_text("{")
    return here


def _work(*_: object, **__: object) -> Any:
    raise AssertionError("work began")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that loads the embedded model or measures fails the test."""
    for place in (
        "pruneopt.cli.options.Machine._demo",
        "pruneopt.demo.assets.load_model",
        "pruneopt.lab.prefill.run.measure_spec",
        "pruneopt.lab.selection.run._measure",
        "pruneopt.lab.released.run.cell",
        "pruneopt.lab.grid.Cell.row",
        "pruneopt.lab.targets.run.sinkhorn_targets",
        "pruneopt.lab.cross.cells.run_cells",
    ):
        monkeypatch.setattr(place, _work)


@pytest.mark.parametrize("words", cases())
def test_a_bad_value_is_one_line_and_exit_code_2(
    words: list[str],
    folder: Path,
    idle: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(p for p in folder.rglob("*") if p.is_file())
    with pytest.raises(SystemExit) as left:
        main(words)
    captured = capsys.readouterr()
    assert left.value.code == 2, captured
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert len(captured.err) > len("error: ") + 10
    assert captured.out == ""
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == before, "something was written"
