"""Rules that find tests which cannot fail.  Read by `test_test_lint.py`; each yields `(line, rule)`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
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


def own(function: Any) -> Iterator[ast.AST]:
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


Found = Iterator[tuple[int, str]]


def problems(source: str) -> list[str]:
    """What is wrong in a test file, as `line: rule`."""
    tree = ast.parse(source)
    helpers = asserting_helpers(tree)
    found = {place for rule in ANYWHERE for node in ast.walk(tree) for place in rule(node)}
    for node in ast.walk(tree):
        if isinstance(node, Function):
            test = node.name.startswith("test")
            if test or node.name in helpers:
                found |= {place for rule in IN_CHECKS for place in rule(node, helpers)}
            if test:
                found |= {place for rule in IN_TESTS for place in rule(node, helpers)}
    return [f"{line}: {rule}" for line, rule in sorted(found)]


# --- expressions and statements ----------------------------------------------------------------------------


def thrown_away(node: ast.AST) -> Found:
    if isinstance(node, ast.Expr) and called(node.value) in COMPARING:
        yield node.lineno, f"the result of {called(node.value)}() is thrown away"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
        yield node.lineno, "a comparison without assert"


def with_itself(node: ast.AST) -> Found:
    """`x == x`, `f() == f()`, `assert_close(x, x)`, and an output of a golden file against itself."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(same(a, b) for a, b in pairwise(sides)):
            yield node.lineno, "compared with itself; two calls alike belong in two variables"
    name = called(node)
    if name in COMPARING or name.startswith("assert_"):
        sides = [*([node.func.value] if isinstance(node.func, ast.Attribute) else []), *node.args[:2]]
        if any(same(a, b) for a, b in pairwise(sides)):
            yield node.lineno, "compared with itself"
    if name in ("same", "close", "order") and len(node.args) > 2:
        got = node.args[2]
        if called(got) == "want" and [*map(ast.dump, got.args)] == [*map(ast.dump, node.args[:2])]:
            yield node.lineno, "compared with itself"


def constant_assert(node: ast.AST) -> Found:
    """`assert True`, `x or True`, `isinstance(x, A) or ...`, `len(x) >= 0`, `-1 <= cosine <= 1`."""
    if not isinstance(node, ast.Assert):
        return
    if isinstance(node.test, (ast.Tuple, ast.JoinedStr)) or truthy(node.test):
        yield node.lineno, "an assert of a constant"
    for part in ast.walk(node.test):
        if isinstance(part, ast.BoolOp) and isinstance(part.op, ast.Or):
            if any(truthy(value) for value in part.values):
                yield node.lineno, "always true: `or` with a true constant"
            if any(called(value) == "isinstance" for value in part.values):
                yield node.lineno, "a type is enough for this `or`"
        if isinstance(part, ast.Compare):
            yield from constant_range(part)


def constant_range(node: ast.Compare) -> Found:
    sides = [node.left, *node.comparators]
    for a, op, b in zip(sides, node.ops, sides[1:], strict=False):
        low, high = (b, a) if isinstance(op, ast.GtE) else (a, b) if isinstance(op, ast.LtE) else (None, None)
        if low is not None and number(low) == 0 and never_negative(high):
            yield node.lineno, "never negative, so this is always true"
    if len(sides) == 3 and all(isinstance(op, ast.LtE) for op in node.ops):
        low, high = number(sides[0]), number(sides[2])
        if low is not None and high is not None and low <= -1 <= 1 <= high:
            yield node.lineno, "from -1 to 1 is the range of a cosine or a correlation"


def loose_tolerance(node: ast.AST) -> Found:
    """A tolerance as large as the value it is for."""
    if called(node) == "approx" and node.args:
        value, limits = number(node.args[0]), {k.arg: number(k.value) for k in node.keywords}
        if (limits.get("rel") or 0) >= 1 or (value and (limits.get("abs") or 0) >= abs(value)):
            yield node.lineno, "the tolerance is as large as the value"
    if called(node) in ("assert_allclose", "assert_close", "allclose", "isclose"):
        value = number(node.args[1]) if len(node.args) > 1 else None
        limits = {k.arg: number(k.value) for k in node.keywords}
        if (limits.get("rtol") or 0) >= 1 or (value and (limits.get("atol") or 0) >= abs(value)):
            yield node.lineno, "the tolerance is as large as the value"
    if (
        isinstance(node, ast.Compare)
        and called(node.left) == "abs"
        and isinstance(node.ops[0], (ast.Lt, ast.LtE))
    ):
        inner = node.left.args[0] if node.left.args else node.left.func.value
        limit = number(node.comparators[0])
        value = (
            number(inner.right) if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub) else None
        )
        if value and limit is not None and limit >= abs(value):
            yield node.lineno, "the tolerance is as large as the value"


def any_exception(node: ast.AST) -> Found:
    """`raises(Exception)` is met by a typo in the test; with `match` it is met by one error only."""
    named = any(keyword.arg == "match" for keyword in getattr(node, "keywords", ()))
    if called(node) == "raises" and node.args and broad(node.args[0]) and not named:
        yield node.lineno, "any exception is met, a typo in the test too: name it, or give match="


def empty_all(node: ast.AST) -> Found:
    if isinstance(node, ast.Assert) and called(node.test) == "all" and any(map(filtered, node.test.args)):
        yield node.lineno, "all() of a filter is true of nothing: assert that something is left"


# --- tests and the helpers that assert for them ------------------------------------------------------------


def swallowed(function: Any, helpers: set[str]) -> Found:
    """A handler that only passes, one of any exception that does not look at it, or `suppress`."""
    for node in own(function):
        if isinstance(node, ast.ExceptHandler) and all(map(does_nothing, node.body)):
            yield node.lineno, "an error is swallowed"
        elif isinstance(node, ast.ExceptHandler) and broad(node.type) and not looked_at(node):
            yield node.lineno, "any exception will do, a crash too"
        if isinstance(node, ast.withitem) and called(node.context_expr) == "suppress":
            yield node.context_expr.lineno, "an error is swallowed"


def falls_back(function: Any, helpers: set[str]) -> Found:
    """`if x is None: return`: nothing is checked where there is nothing."""
    for node in own(function):
        if isinstance(node, ast.If) and not node.orelse and all(map(does_nothing, node.body)):
            missing = isinstance(node.test, ast.Compare) and any(
                isinstance(op, ast.Is) and isinstance(side, ast.Constant) and side.value is None
                for op, side in zip(node.test.ops, node.test.comparators, strict=True)
            )
            nothing = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
            if missing or (nothing and any(isinstance(step, ast.Return) for step in node.body)):
                yield node.lineno, "where there is nothing, nothing is checked"


def empty_bound(function: Any, helpers: set[str]) -> Found:
    """`least = 0.0 if hard else 0.9`, then `assert share >= least`: nothing is asked of the hard ones."""
    zero = {
        target.id: node.lineno
        for node in own(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp)
        if any(number(side) == 0 for side in (node.value.body, node.value.orelse))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    tests = [node.test for node in own(function) if isinstance(node, ast.Assert)]
    for node in [part for test in tests for part in getattr(test, "values", [test])]:
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.GtE, ast.LtE)):
            bound = node.comparators[0] if isinstance(node.ops[0], ast.GtE) else node.left
            if getattr(bound, "id", "") in zero:
                yield zero[bound.id], "a bound of 0 is met by everything"


# --- tests only ---------------------------------------------------------------------------------------------


def nothing_can_fail(function: Any, helpers: set[str]) -> Found:
    first = min((n.lineno for n in ast.walk(function) if asserts(n, helpers)), default=None)
    if first is None:
        yield function.lineno, f"{function.name} has nothing that can fail"
        return
    for inner in own(function):
        if isinstance(inner, ast.Return) and inner.lineno < first:
            yield inner.lineno, f"{function.name} returns before its first assert"


def empty_loop(function: Any, helpers: set[str]) -> Found:
    """Every assert stands in one loop over a filter or a folder, and nothing says that it holds something."""
    filters = {
        target.id
        for node in own(function)
        if isinstance(node, ast.Assign) and filtered(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for loop in own(function):
        if isinstance(loop, ast.For) and (filtered(loop.iter) or getattr(loop.iter, "id", "") in filters):
            inside = set(ast.walk(loop))
            if not any(asserts(node, helpers) and node not in inside for node in ast.walk(function)):
                yield loop.lineno, "checked in a loop that may be empty: assert that something is left"


def under_a_condition(function: Any, helpers: set[str]) -> Found:
    """Every assert stands under one `if` without `else`: where it does not hold, nothing is checked."""
    for branch in own(function):
        if isinstance(branch, ast.If) and not branch.orelse:
            inside = {node for step in branch.body for node in ast.walk(step)}
            if any(asserts(node, helpers) for node in inside) and not any(
                asserts(node, helpers) and node not in inside for node in ast.walk(function)
            ):
                yield branch.lineno, "checked under a condition only"


# --- what the rules ask -------------------------------------------------------------------------------------


def same(a: ast.AST, b: ast.AST) -> bool:
    """Whether two expressions are the same text, and no constants."""
    return not isinstance(a, ast.Constant) and ast.dump(a) == ast.dump(b)


def number(node: ast.AST | None) -> float | None:
    """Value of a number written in the code, signs and sums included."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        a, b = number(node.left), number(node.right)
        if a is not None and b is not None:
            return a + b if isinstance(node.op, ast.Add) else a - b
    return None


def broad(kind: ast.AST | None) -> bool:
    """Whether an exception class, or one of a tuple of them, is met by everything."""
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(k is None or getattr(k, "id", "") in ("Exception", "BaseException") for k in kinds)


def looked_at(handler: ast.ExceptHandler) -> bool:
    """Whether a handler raises, or does something with the exception it caught."""
    steps = [step for line in handler.body for step in ast.walk(line)]
    names = {step.id for step in steps if isinstance(step, ast.Name)}
    return handler.name in names or any(isinstance(step, ast.Raise) for step in steps)


def truthy(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value)


def never_negative(node: ast.AST) -> bool:
    """Lengths, counts, norms, absolute values and squares, as they are or through float() and int()."""
    if isinstance(node, ast.Call):
        name = called(node)
        if name in ("float", "int") and node.args:
            return never_negative(node.args[0])
        if name in ("max", "min", "sum", "mean") and isinstance(node.func, ast.Attribute):
            return never_negative(node.func.value)
        return name in ("len", "abs", "norm", "numel", "count", "square")
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and number(node.right) == 2


def filtered(node: ast.AST) -> bool:
    """A comprehension with a condition, filter(), or a listing of a folder."""
    if called(node) in ("sorted", "list", "tuple", "set", "enumerate", "zip") and node.args:
        return any(filtered(arg) for arg in node.args)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
        return any(generator.ifs or filtered(generator.iter) for generator in node.generators)
    return called(node) in ("filter", "glob", "rglob", "iterdir")


def does_nothing(node: ast.AST) -> bool:
    if isinstance(node, ast.Return):
        return node.value is None or getattr(node.value, "value", node) is None
    return isinstance(node, (ast.Pass, ast.Continue)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


ANYWHERE: tuple[Callable[[ast.AST], Found], ...] = (
    thrown_away, with_itself, constant_assert, loose_tolerance, any_exception, empty_all,
)  # fmt: skip
IN_CHECKS: tuple[Callable[[Any, set[str]], Found], ...] = (swallowed, falls_back, empty_bound)
IN_TESTS: tuple[Callable[[Any, set[str]], Found], ...] = (
    nothing_can_fail,
    empty_loop,
    under_a_condition,
)
