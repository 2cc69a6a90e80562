"""`pruneopt`: one application, one module per command.

A refusal of pruneopt is one line on standard error and exit code 2.  Nothing heavy is imported before a
command needs it.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pruneopt.cli import bench, catalogue, check, cross, sweep
from pruneopt.errors import PruneoptError

app = typer.Typer(
    name="pruneopt",
    help="Visual-token pruning as optimisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, such as budget.keep=0.25", show_default=False)
]
Method = Annotated[str, typer.Option("--method", "-m", help="a method name or the path of a spec")]

app.add_typer(bench.app, name="bench")
app.command("list")(catalogue.list_command)
app.command("show")(catalogue.show_command)
app.command("plugins")(catalogue.plugins_command)
app.command("sweep")(sweep.sweep_command)
app.command("table")(sweep.table_command)
app.command("cross")(cross.cross_command)
app.command("check")(check.check_command)


@app.command("demo")
def demo(
    overrides: Overrides = None,
    method: Method = "topv",
    out: Annotated[str, typer.Option(help="folder for the picture")] = "out",
    questions: Annotated[int, typer.Option(help="evaluation questions; 0 skips the evaluation")] = 100,
) -> None:
    """The embedded model on a real picture: dense and pruned side by side, then accuracy."""
    from pruneopt.cli.demo import demo_command

    demo_command(method, overrides or [], out, questions)


@app.command("run")
def run(
    model: Annotated[
        str, typer.Option(help="folder or hub id of a supported model; 'demo' is the embedded one")
    ],
    image: Annotated[str, typer.Option(help="picture file")],
    prompt: Annotated[str, typer.Option(help="what to ask")],
    overrides: Overrides = None,
    method: Method = "topv",
    out: Annotated[str, typer.Option(help="folder for the picture")] = "out",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    attention: Annotated[str, typer.Option(help="the model's own attention setting")] = "sdpa",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code from the model's folder")
    ] = False,
) -> None:
    """Ask a model about a picture, dense and pruned side by side."""
    from pruneopt.cli.demo import run_command

    run_command(
        model,
        method,
        image,
        prompt,
        overrides or [],
        out,
        max_new_tokens,
        dtype,
        attention,
        trust_remote_code,
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0, 1 for a failed check, 2 for a refusal or wrong usage."""
    try:
        app(arguments, prog_name="pruneopt")
    except PruneoptError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
