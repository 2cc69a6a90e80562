"""`list`, `show` and `plugins`: what there is, what a method is made of, and who registered what."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pruneopt.errors import RegistryError, nearest
from pruneopt.parts import Part
from pruneopt.registry import GROUPS, registry
from pruneopt.signals import signal_info
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.spec.schema import Spec

_KINDS = ("methods", *GROUPS)


def console() -> Console:
    """Plain, unwrapped lines when the output is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def _summary(part: type) -> str:
    return (part.__doc__ or "").strip().splitlines()[0].replace("`", "")


def list_command(
    kind: Annotated[str, typer.Argument(help="methods, models, costs, scores, solvers, ...")] = "methods",
) -> None:
    """List methods, models, or the registered parts of one kind."""
    if kind not in _KINDS:
        raise RegistryError(f"there is no list of {kind!r}{nearest(kind, _KINDS)}")
    if kind == "methods":
        table = _methods()
    elif kind == "models":
        table = _models()
    else:
        table = Table("name", "what it is", "origin", title=kind)
        for entry in registry(kind).entries():
            text = entry.problem if entry.problem else _summary(registry(kind).get(entry.name))
            table.add_row(Text(entry.name), Text(text), Text(entry.origin))
    console().print(table)


def _methods() -> Table:
    table = Table("method", "problem", "solver", "cut before layer", "attention", "paper", title="methods")
    for name in list_methods():
        spec = load_spec(name)
        table.add_row(
            name,
            ", ".join(dict.fromkeys(s.problem.kind for s in spec.stages)),
            ", ".join(dict.fromkeys(s.solver.name for s in spec.stages)),
            ", ".join(str(s.insertion.layer_index) for s in spec.stages),
            spec.attention.name.lower(),
            str(spec.meta.get("paper", "")),
        )
    return table


def _models() -> Table:
    from pruneopt.models.supported import supported_models

    rows = supported_models()
    table = Table(*(rows[0].keys() if rows else ["model"]), title="models")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def show_command(
    method: Annotated[str, typer.Argument(help="a method name or the path of a spec")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value", show_default=False)] = None,
) -> None:
    """Show a resolved spec: parts with all defaults, signals, attention need, sources."""
    spec = load_spec(method, overrides or [])
    out = console()
    out.print(Text(f"{spec.name}   hash {spec.hash}   attention need: {spec.attention.name.lower()}", "bold"))
    body = spec.to_spec()
    meta = body.pop("meta")
    from omegaconf import OmegaConf

    out.print(Text(OmegaConf.to_yaml(OmegaConf.create(body)).rstrip()))
    out.print(_signals(spec))
    out.print(_sources(spec))
    deviations = meta.pop("deviations", None) or {}
    for key, value in meta.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        out.print(Text.assemble((f"{key}: ", "bold"), " ".join(text.split())))
    out.print(Text("deviations:" if deviations else "deviations: none known", "bold"))
    for key, value in deviations.items():
        out.print(Text.assemble((f"  {key}: ", "bold"), " ".join(str(value).split())))


def _signals(spec: Spec) -> Table:
    table = Table("signal", "shape", "attention", "what it is", title="signals")
    for name in sorted(spec.needs):
        info = signal_info(name)
        table.add_row(name, Text(info.shape), info.attention.name.lower(), Text(info.doc))
    return table


def _sources(spec: Spec) -> Table:
    table = Table("part", "source", title="sources")
    parts: dict[str, Part] = {p.name: p for stage in spec.stages for p in stage.parts}
    for name, part in sorted(parts.items()):
        if part.source:
            table.add_row(name, Text(part.source))
    return table


def plugins_command(
    *,
    all_parts: Annotated[bool, typer.Option("--all", help="built-in parts too")] = False,
) -> None:
    """Show what other packages registered, with origin and, for broken ones, the reason."""
    table = Table("kind", "name", "origin", "target", "state", title="plugins")
    found = 0
    for group in GROUPS:
        for entry in registry(group).entries():
            if entry.origin.startswith("pruneopt ") and not all_parts and not entry.problem:
                continue
            found += 1
            state = Text(f"broken: {entry.problem}", "red") if entry.problem else Text("ok", "green")
            table.add_row(group, entry.name, entry.origin, entry.target, state)
    out = console()
    if found:
        out.print(table)
    else:
        out.print("no plugin is installed; docs/plugins.md says how to write one")
