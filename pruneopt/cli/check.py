"""`pruneopt check`: the conformance suite on anyone's part."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pruneopt.cli.catalogue import console
from pruneopt.errors import SpecError
from pruneopt.spec.yamlfile import parse_value

MARKS = {
    "passed": "[green]pass[/]",
    "failed": "[red]FAIL[/]",
    "expected": "[yellow]expected[/]",
    "surprise": "[red]passes[/]",
}


def check_command(
    targets: Annotated[
        list[str],
        typer.Argument(help="registered name, group/name, package.module[:Class], file, or plugin folder"),
    ],
    *,
    param: Annotated[list[str] | None, typer.Option(help="parameter of the part, NAME=VALUE")] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(help="a failure that is known, CHECK=REASON; passing is then a failure"),
    ] = None,
    all_checks: Annotated[bool, typer.Option("--all", help="list the checks that pass, too")] = False,
) -> None:
    """Run the conformance suite; exit code 1 when a check fails, 2 for a target that cannot be used."""
    from pruneopt.testing.suites import check_part
    from pruneopt.testing.targets import build, find_parts

    params, reasons = _pairs(param, "--param", read=parse_value), _pairs(expect, "--expect", read=str)
    screen = console()
    good = True
    parts = [part for target in targets for part in find_parts(target)]
    for part in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = check_part(build(part, params), expected_failures=reasons, on_fail="report")
        good &= verdict.ok
        _print(screen, verdict, all_checks=all_checks)
    if not good:
        raise typer.Exit(1)


def _pairs(given: list[str] | None, option: str, *, read: Callable[[str], Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"{option} {text!r} is not of the form NAME=VALUE")
        out[name] = read(value)
    return out


def _print(screen: Any, verdict: Any, *, all_checks: bool) -> None:
    """One line per verdict, and a table of what failed (or of everything)."""
    from rich.markup import escape
    from rich.table import Table

    passed = sum(outcome.state == "passed" for outcome in verdict.outcomes)
    mark = "[green]conforms[/]" if verdict.ok else "[red]does not conform[/]"
    screen.print(
        f"{verdict.kind} [bold]{verdict.part}[/]: {mark}, {passed} of {len(verdict.outcomes)} checks pass"
    )
    rows = [o for o in verdict.outcomes if all_checks or o.state != "passed"]
    if not rows:
        return
    table = Table(show_header=True, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("likely cause", overflow="fold")
    for outcome in rows:
        words = outcome.message.removeprefix(f"{verdict.part}: {outcome.check}: ")
        table.add_row(outcome.check.removeprefix("check_"), MARKS[outcome.state], escape(words))
    screen.print(table)
