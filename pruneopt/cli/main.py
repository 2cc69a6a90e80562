"""`pruneopt`: one application, one module per command.

A refusal of pruneopt and wrong usage are one line on standard error and exit code 2.  Nothing heavy is
imported before a command needs it.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from pruneopt import __version__
from pruneopt.cli import bench, catalogue, check, cross, demo, sweep
from pruneopt.errors import PruneoptError

_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]  # typer carries a click of its own

app = typer.Typer(
    name="pruneopt",
    help="Visual-token pruning as optimisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer passes the flag by position
    if wanted:
        typer.echo(f"pruneopt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    """Visual-token pruning as optimisation."""


app.add_typer(bench.app, name="bench")
app.add_typer(sweep.records, name="records")
app.command("demo")(demo.demo_command)
app.command("run")(demo.run_command)
app.command("list")(catalogue.list_command)
app.command("show")(catalogue.show_command)
app.command("plugins")(catalogue.plugins_command)
app.command("sweep")(sweep.sweep_command)
app.command("table")(sweep.table_command)
app.command("cross")(cross.cross_command)
app.command("check")(check.check_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: exit code 0, 1 for a failed check or measurement, 2 for a refusal or wrong usage."""
    try:
        code = app(arguments, prog_name="pruneopt", standalone_mode=False)
    except PruneoptError as error:
        _refuse(str(error))
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            typer.echo(error.format_message())
            sys.exit(2)
        command = error.ctx.command_path if error.ctx is not None else "pruneopt"
        _refuse(f"{error.format_message()} (help: {command} --help)")
    except typer.Abort:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(words: str) -> NoReturn:
    typer.echo(f"error: {' '.join(words.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
