"""A lint of the tests themselves: checks that cannot fail are errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
FILES = sorted([*ROOT.rglob("*.py"), *(ROOT.parent / "plugins").rglob("tests/*.py")])
HELPERS = {path.stem: path for path in FILES if not path.stem.startswith("test_")}
COMPARING = {"allclose", "equal", "array_equal", "array_equiv", "isclose"}
ASSERTING = {"raises", "warns", "fail", "xfail", "check"}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def called(node: ast.AST) -> str:
    """Last name of what a call calls."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def own(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Nodes of a function in order of lines, without those of functions inside it."""
    stack: list[ast.AST] = list(reversed(function.body))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, (*Function, ast.Lambda)):
            stack += reversed(list(ast.iter_child_nodes(node)))


def asserts(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a node can make a test fail: assert, raise, pytest.raises, assert_*, or a helper that does."""
    name = called(node)
    return isinstance(node, (ast.Assert, ast.Raise)) or bool(
        name and (name in ASSERTING or name.startswith("assert") or name in helpers)
    )


def asserting_helpers(tree: ast.Module) -> set[str]:
    """Functions of a module that assert, directly, through each other, or imported from a file beside it."""
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, Function)}
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in HELPERS:
            there = ast.parse(HELPERS[node.module].read_text(encoding="utf-8"))
            beside, names = asserting_helpers(there), {alias.name for alias in node.names}
            imported |= {alias.asname or alias.name for alias in node.names if alias.name in beside}
            classes = (c for c in there.body if isinstance(c, ast.ClassDef) and c.name in names)
            imported |= {
                f.name for c in classes for f in c.body if isinstance(f, Function) and f.name in beside
            }
    found: set[str] = set(imported)
    for _ in functions:
        more = {name for name, f in functions.items() if any(asserts(n, found) for n in ast.walk(f))}
        more |= imported
        if more == found:
            break
        found = more
    return {name for name in found if not name.startswith("test")}


def problems(source: str) -> list[str]:
    """What is wrong in a test file, as `line: rule`."""
    tree = ast.parse(source)
    helpers = asserting_helpers(tree)
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and called(node.value) in COMPARING:
            out.append(f"{node.lineno}: the result of {called(node.value)}() is thrown away")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
            out.append(f"{node.lineno}: a comparison without assert")
        if isinstance(node, Function) and node.name.startswith("test"):
            first = next((n.lineno for n in ast.walk(node) if asserts(n, helpers)), None)
            if first is None:
                out.append(f"{node.lineno}: {node.name} has nothing that can fail")
                continue
            for inner in own(node):
                if isinstance(inner, ast.Return) and inner.lineno < first:
                    out.append(f"{inner.lineno}: {node.name} returns before its first assert")
    return sorted(out, key=lambda line: int(line.split(":")[0]))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT.parent)) for p in FILES])
def test_tests_can_fail(path):
    assert problems(path.read_text(encoding="utf-8")) == []


PLANTED = {
    "def test_a():\n    x = f()\n    np.allclose(x, 1)\n    assert x is not None": "thrown away",
    "def test_a():\n    torch.equal(x, y)\n    assert 1": "thrown away",
    "def helper(x):\n    x.equal(1)\n": "thrown away",
    "def test_a():\n    run()": "nothing that can fail",
    "def test_a():\n    def inner():\n        pass\n    inner()": "nothing that can fail",
    "def test_a(kind):\n    if kind == 'x':\n        return\n    assert run(kind)": "returns before",
    "def test_a():\n    run() == 3\n    assert 1": "without assert",
    "class TestA:\n    def test_b(self):\n        self.run()": "nothing that can fail",
    "def check_it(x):\n    return x == 1\n\ndef test_a():\n    check_it(2)": "nothing that can fail",
}


@pytest.mark.parametrize("source", PLANTED)
def test_the_lint_finds_planted_cases(source):
    assert any(PLANTED[source] in line for line in problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "def test_a():\n    assert np.allclose(x, 1)",
        "def test_a():\n    with pytest.raises(ValueError):\n        run()",
        "def helper(x):\n    assert x\n\ndef test_a():\n    helper(run())\n    return",
        "def test_a():\n    def inner():\n        return 1\n    assert inner() == 1",
        "def test_a():\n    torch.testing.assert_close(x, y)",
    ],
)
def test_the_lint_leaves_good_tests_alone(source):
    assert problems(source) == []
