"""Every code block and every command printed in the README and the docs is run.

Commands run in a copy of what they read and write, in this process, each once however often it is printed.
What is longer than a test may be gets smaller settings, hub ids get the embedded model, and set-up commands,
which install, are held to what they name: the tables below say so.  A line that is in none of them fails.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pruneopt
from pruneopt.cli.main import main
from pruneopt.registry import GROUPS, Claim, registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "plugins/pruneopt-entropy/README.md", "experiments/records/README.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`((?:pruneopt|python|make|pip) [^`]+)`")
_COMMAND = re.compile(r"^(pruneopt |python|make |pip |\.venv/bin/|[A-Z]+=)")

# a word of a page -> what stands for it here
STANDS_FOR = {
    "PATH_OR_ID": "demo",
    "llava-hf/llava-1.5-7b-hf": "MODEL",  # the folder of the embedded model, which is a LLaVA
    "NAME": "topv",
    "DIR": "bench",
}
# first words of a command -> smaller settings for it
SMALLER = {
    "demo": "--questions 1",
    "sweep": "--questions 4",
    "bench select --gap": "--pictures 1 --time-limit 0.1",
    "bench notch": "--methods divprune --keep 16 --questions 2 --bounded 1",
    "bench select": "--methods fastv,divprune --sizes 16 --keep 4 --batch 1 --repeats 1",
    "bench price": "--pictures 2",
    "bench released": "--methods fastv --seconds 0",
    "bench solvers": "--sizes 9 --batch 1 --repeats 1 --budget 0 --solvers sinkhorn,emd --families topv",
    "bench solvers --families": "--sizes 9 --batch 1 --repeats 1 --budget 0 --solvers sinkhorn,emd",
}
# a command that a sentence only mentions -> arguments for it
ONE_CELL = "--costs cosine_distance --kernels cosine --scores token_norm --solvers farthest_point"
MENTIONED = {
    "check": ["cosine_distance"],
    "cross": [*ONE_CELL.split(), "--readouts", "row_max", "--insertions", "post_encoder"],
    "show": ["topv"],
    "": ["--version"],
}
# set-up commands: not run, because they install; what they name must exist
SET_UP = (
    r"make (?P<target>\w+)( ARGS=\S+)?",
    r"python3 -m venv \.venv",
    r"\.venv/bin/python -m pip install --constraint (?P<file>\S+) --editable '\.\[(?P<extra>\w+)\]'",
    r"\.venv/bin/python -m pytest",
    r"pip install \./(?P<folder>\S+)",
)

TERM = '''
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from pruneopt.parts import CostTerm, param

@dataclass(frozen=True)
class MyTerm(CostTerm):
    """How far along the sequence a token is."""
    name: ClassVar[str] = "my_term"
    shape: ClassVar[str] = "unary"
    tags: ClassVar[frozenset[str]] = frozenset({"uses_order"})
    radius: int = param(1, low=1)

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        x = signals["features"]
        place = signals.mask.double().cumsum(1)
        return torch.where(x.isnan().any(2), torch.nan, place / self.radius)
'''


@dataclass(frozen=True)
class Code:
    page: str
    line: int
    kind: str  # the language of a block, "" for none, "span" for a command within a sentence
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def code_of(page: str) -> Iterator[Code]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield Code(page, text[: match.start()].count("\n") + 1, match[1], match[2])
    prose = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in _SPAN.finditer(prose):
        yield Code(page, prose[: match.start()].count("\n") + 1, "span", " ".join(match[1].split()) + "\n")


CODE = [code for page in PAGES for code in code_of(page)]
COMMANDS = [c for c in CODE if c.kind == "span" or (c.kind == "" and _COMMAND.match(c.text))]
PYTHON = [c for c in CODE if c.kind == "python"]


def test_nothing_that_looks_like_a_command_is_left_out() -> None:
    rest = [c for c in CODE if c not in COMMANDS and c not in PYTHON]
    assert {c.kind for c in rest} <= {"", "toml", "text"}
    for code in rest:
        lines = code.text.splitlines()
        assert not [line for line in lines if re.match(r"\s*(\$ |pruneopt (?!forward)|make |pip )", line)], (
            code
        )
    assert len(COMMANDS) > 15 and len(PYTHON) > 6


@pytest.mark.parametrize("code", [c for c in CODE if c.kind == "toml"], ids=str)
def test_entry_points_on_the_pages_are_of_known_groups(code: Code) -> None:
    groups = tomllib.loads(code.text)["project"]["entry-points"]
    assert groups and {group.removeprefix("pruneopt.") for group in groups} <= set(GROUPS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the commands read and write."""
    from pruneopt.demo.assets import sample

    here = tmp_path_factory.mktemp("pages")
    for name in ("docs", "plugins", "experiments/records/solvers", "experiments/records/select",
                 "experiments/records/prefill", "experiments/records/price",
                 "experiments/records/notch"):  # fmt: skip
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    shutil.copytree(ROOT / "plugins" / "pruneopt-entropy", here / "plugins" / "my-term")
    shutil.copy(sample().image, here / "cat.jpg")
    shutil.copy(ROOT / "README.md", here)
    (here / "my_term.py").write_text(TERM)
    # The head of the file, one line of each kind: a sweep over all of it takes minutes.
    lines = (ROOT / "experiments" / "accuracy.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    first = lines.index("entries:\n")
    seeds = next(i for i, line in enumerate(lines) if "seeds: 5" in line)
    topv = next(i for i, line in enumerate(lines) if "label: topv " in line)
    kept = [*lines[: first + 2], lines[seeds].replace("seeds: 5", "seeds: 2"), lines[topv]]
    (here / "experiments" / "accuracy.yaml").write_text("".join(kept))
    return here


@pytest.fixture
def plugin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example plugin, as if it were installed."""
    monkeypatch.syspath_prepend(str(place / "plugins" / "pruneopt-entropy"))
    claim = Claim("patch_entropy", "pruneopt_entropy.patch_entropy:PatchEntropy", "pruneopt-entropy 0")
    monkeypatch.setitem(registry("costs")._claims, "patch_entropy", [claim])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench targets` has no sizes to set, `bench select --gap` and `bench price` no methods."""
    from pruneopt.lab.gap import run as select_gap
    from pruneopt.lab.price import run as price
    from pruneopt.lab.released import run as released
    from pruneopt.lab.targets import run as targets

    for module, name, settings in (
        (targets, "sinkhorn_targets", {"tokens": 8, "batch": 1, "rounds": 5, "repeats": 1}),
        (targets, "sinkhorn_rivals", {"sizes": ((8, 2),), "rounds": 5, "repeats": 1}),
        (targets, "exact_rivals", {"sizes": ((8, 2),), "repeats": 1}),
        (targets, "emd_targets", {"tokens": 8, "batch": 2, "repeats": 1}),
        (targets, "subset_targets", {"tokens": 16, "k": 4, "batch": 1, "repeats": 1}),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), **settings))
    monkeypatch.setattr(select_gap, "GREEDY", select_gap.GREEDY[:3:2])
    monkeypatch.setattr(price, "METHODS", {"FastV": price.METHODS["FastV"]})
    monkeypatch.setattr(price, "load_questions", partial(price.load_questions, ["object"]))
    monkeypatch.setattr(price, "BATCH", 2)
    monkeypatch.setattr(released, "starts", lambda times: {"list": 1.0, "torch": 1.0})


def lines_of(code: Code) -> Iterator[str]:
    """Commands of a block, with continued lines joined, comments cut and its variables filled in."""
    variables: dict[str, str] = {}
    for line in code.text.replace("\\\n", " ").splitlines():
        if given := re.match(r"([A-Z]+)=(\S+)$", line):
            variables[f"${given[1]}"] = given[2]
        elif line.strip():
            for name, value in variables.items():
                line = line.replace(name, value)
            yield " ".join(re.sub(r"\s#.*", "", line).split())


def distinct() -> Iterator[Any]:
    """Every command that the pages print, once, called by where it is first printed."""
    seen: set[str] = set()
    for code in COMMANDS:
        for line in lines_of(code):
            line = line.removeprefix(".venv/bin/") if line.startswith(".venv/bin/pruneopt") else line
            if line not in seen:
                seen.add(line)
                yield pytest.param(line, id=f"{code}: {line[:40]}")


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command of a page in this process; its exit code."""
    words = shlex.split(line)
    if words[:2] == ["python", "-m"] and words[2].startswith("pruneopt."):
        monkeypatch.setattr(sys, "argv", words[2:])
        monkeypatch.delitem(sys.modules, words[2], raising=False)
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as left:
            return int(left.code or 0)
        return 0
    words = ["pruneopt", *words[3:]] if words[:3] == ["python", "-m", "pruneopt"] else words
    assert words[0] == "pruneopt", f"no table says what to do with: {line}"
    from pruneopt.demo.assets import model_path
    from pruneopt.lab.solvers import plots

    words = [STANDS_FOR.get(word, word).replace("MODEL", str(model_path())) for word in words[1:]]
    words += MENTIONED.get(" ".join(words), [])
    if "--report" not in words:
        found = [name for name in SMALLER if words[0] == name.split()[0] and set(name.split()) <= set(words)]
        words += SMALLER[max(found, key=len)].split() if found else []
    if "report" not in words:  # that command draws what the others would draw again
        monkeypatch.setattr(plots, "draw", lambda *_, **__: None)
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def refresh(line: str, place: Path) -> None:
    """Put back what a command reads, whichever other one ran before it in this process."""
    if line.startswith(("pruneopt table", "pruneopt records")):
        shutil.rmtree(place / "runs", ignore_errors=True)
        shutil.copytree(ROOT / "experiments" / "records" / "accuracy", place / "runs")
    if line.startswith("pruneopt sweep"):
        shutil.rmtree(place / "runs", ignore_errors=True)
    if "experiments/records/solvers" in line:
        folder = "experiments/records/solvers"
        shutil.rmtree(place / folder)
        shutil.copytree(ROOT / folder, place / folder)


def set_up(line: str) -> bool:
    """Whether a line is a set-up command that names what exists."""
    line = line.partition("#")[0].strip()
    found = next((m for m in (re.fullmatch(p, line) for p in SET_UP) if m), None)
    if found is None:
        return False
    named = found.groupdict()
    if "target" in named:
        assert re.search(rf"^{named['target']}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    for key in ("file", "folder"):
        assert key not in named or (ROOT / named[key]).exists(), line
    if "extra" in named:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert named["extra"] in extras, line
    return True


@pytest.mark.slow
@pytest.mark.parametrize("line", distinct())
def test_commands_on_the_pages_run(
    line: str, place: Path, plugin: None, small: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if set_up(line):
        return
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refresh(line, place)
    threads = torch.get_num_threads()
    try:
        code = run(line, monkeypatch)
    finally:
        torch.set_num_threads(threads)
    captured = capsys.readouterr()
    # a promise of speed on toy sizes may be missed
    assert code in ({0, 1} if "bench targets" in line else {0}), captured.err
    for page in re.findall(r"docs/\S+\.md", line):  # what commands write into pages is what stands there
        assert (place / page).read_text() == (ROOT / page).read_text(), f"{page} is stale; run: {line}"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the pages take for granted."""
    from pruneopt.demo.assets import load_inputs, load_model, sample

    model, processor = load_model()
    generator = torch.Generator().manual_seed(0)
    module = ModuleType("my_term")
    monkeypatch.setitem(sys.modules, "my_term", module)
    exec(TERM.replace('{"uses_order"}', "()"), module.__dict__)
    return {
        "pruneopt": pruneopt,
        "model": model,
        "inputs": load_inputs([sample()], processor),
        "tokens": torch.randn(2, 20, 8, generator=generator),
        "cost": torch.rand(2, 6, 5, generator=generator),
        "a": torch.full((2, 6), 1 / 6),
        "b": torch.full((2, 5), 1 / 5),
        "MyTerm": module.MyTerm,
    }


@pytest.mark.parametrize("code", PYTHON, ids=str)
def test_python_on_the_pages_runs(
    code: Code, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(given)
    exec(compile(code.text, str(code), "exec"), names)
    for name, made in list(names.items()):
        if name.startswith("test_"):  # a test on a page is run with its parameters, known failures included
            run_parametrized(made)
    if "print(" in code.text:
        assert capsys.readouterr().out.strip()


def run_parametrized(test: Any) -> None:
    (mark,) = test.pytestmark
    failed = []
    for parameters in mark.args[1]:
        values, marks = parameters.values, parameters.marks
        try:
            test(*values)
            assert not [m for m in marks if m.name == "xfail"], f"{parameters.id} passes after all"
        except AssertionError:
            if not [m for m in marks if m.name == "xfail"]:
                raise
            failed.append(parameters.id)
    assert failed
