"""`demo` and `run`: a picture, a question, dense and pruned side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pruneopt.cli.catalogue import console
from pruneopt.cli.options import Asked, Machine, Method, Overrides, grouped
from pruneopt.lab.progress import progress
from pruneopt.lab.records import prepare_folder
from pruneopt.show.compare import Comparison, compare
from pruneopt.show.images import open_image
from pruneopt.show.picture import save_overlay
from pruneopt.show.survivors import survivor_panel
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

_RANDOM_SEEDS = range(5)


@grouped
def run_command(
    *,
    asked: Asked,
    overrides: Overrides = None,
    method: Method = "topv",
    out: Annotated[Path, typer.Option(help="folder for the picture")] = Path("out"),
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    machine: Machine,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run code from the model's folder")
    ] = False,
) -> None:
    """Ask a model about a picture, dense and pruned side by side."""
    # Whatever can be refused is looked at before the model is loaded, which takes longest.
    spec = load_spec(method, overrides or [])
    picture, text = asked.read()
    prepare_folder(out)
    loaded, processor = machine.load(asked.model, trust_remote_code=trust_remote_code)
    from pruneopt.models.load import build_inputs

    inputs = build_inputs(processor, picture, prompt=text).to(loaded.device, loaded.dtype)
    result = compare(loaded, processor, inputs=inputs, spec=spec, max_new_tokens=max_new_tokens)
    _show(result)
    name = f"{Path(asked.image).stem}_{spec.name.replace('/', '-')}_{spec.hash}.png"
    path = save_overlay(picture, [survivor_panel(result.run)], path=out / name, heading=asked.prompt)
    console().print(Text(f"picture of the kept tokens: {path}"))


def _show(result: Comparison, truth: str | None = None) -> None:
    table = Table("", "dense", "pruned", title="side by side; times are medians of warm passes, in turns")
    table.add_row("answer", Text(result.dense.answer), Text(result.pruned.answer))
    if truth is not None:
        table.add_row("truth", Text(truth), "")
    for name in ("encoder", "prefill", "decode"):
        row = [getattr(side, name) for side in (result.dense, result.pruned)]
        label = f"{name} of one token, ms" if name == "decode" else f"{name}, ms"
        table.add_row(label, *("-" if math.isnan(s) else f"{1000 * s:.1f}" for s in row))
    out = console()
    out.print(table)
    out.print(result.run.report)


@grouped
def demo_command(
    *,
    overrides: Overrides = None,
    method: Method = "topv",
    out: Annotated[Path, typer.Option(help="folder for the picture")] = Path("out"),
    questions: Annotated[int, typer.Option(min=0, help="questions to ask; 0 skips the evaluation")] = 100,
    machine: Machine,
) -> None:
    """The embedded model on a real picture: dense and pruned side by side, then accuracy."""
    start = time.perf_counter()
    spec = load_spec(method, overrides or [])
    prepare_folder(out)
    show = console()
    model, processor = machine.load("demo")
    _side_by_side(model, processor, spec=spec, out=out)
    if questions:
        from pruneopt.demo.assets import load_questions
        from pruneopt.lab.accuracy.answer import spread

        _accuracy(model, processor, spec=spec, chosen=spread(load_questions(), questions), show=show)
    show.print(f"{time.perf_counter() - start:.0f} s")


def _side_by_side(model: Any, processor: Any, *, spec: Spec, out: Path) -> None:
    """The sample question, answered dense and pruned, and the picture of what was kept."""
    from pruneopt.demo.assets import format_prompt, sample
    from pruneopt.models.load import build_inputs

    show = console()
    question = sample()
    picture = open_image(question.image)
    show.print(Text(f"{question.image.name}: {question.question}", "bold"))
    inputs = build_inputs(processor, picture, prompt=format_prompt(question.question))
    result = compare(
        model, processor, inputs=inputs.to(model.device, model.dtype), spec=spec, max_new_tokens=8
    )
    _show(result, question.answer)
    path = out / f"demo_{spec.name.replace('/', '-')}_{spec.hash}.png"
    heading = f"{question.question} (dense: {result.dense.answer}; pruned: {result.pruned.answer})"
    save_overlay(picture, [survivor_panel(result.run)], path=path, heading=heading, box=question.box)
    show.print(Text(f"picture of the kept tokens: {path}"))


def controls(spec: Spec, kept: int) -> dict[str, Spec]:
    """Random (several seeds) and uniform grid at the insertion point of `spec`, keeping `kept` tokens."""
    last = spec.stages[-1]
    place = {"insertion": last.insertion.to_spec(), "positions": spec.positions_at(last)}
    # 1 would be a ratio and keep everything; the smallest ratio keeps one token.
    budget = {"keep": kept if kept > 1 else 1e-9, "scope": "sample"}
    base = {**place, "budget": budget, "solver": "stable_top_k"}
    scores: dict[str, Any] = {f"random choice seed {n}": {"kind": "random", "seed": n} for n in _RANDOM_SEEDS}
    scores["uniform grid"] = {"kind": "uniform_grid"}
    return {
        label: load_spec({**base, "name": label, "problem": {"kind": "top_k", "scores": {"it": score}}})
        for label, score in scores.items()
    }


def _accuracy(model: Any, processor: Any, *, spec: Spec, chosen: Sequence[Any], show: Any) -> None:
    from pruneopt.lab import tables
    from pruneopt.lab.accuracy.answer import answer
    from pruneopt.lab.accuracy.table import HEADER, compared

    with progress(show, "questions", total=len(chosen) * 8) as step:
        ask = partial(answer, model, processor, questions=chosen, on_batch=step)
        dense, ours = ask(), ask(spec=spec)
        # Controls come last: they keep what the method turned out to keep.
        kept = round(sum(o.kept or 0 for o in ours) / len(ours))
        others = {name: ask(spec=other) for name, other in controls(spec, kept).items()}
    said = {"dense": dense, spec.name: ours, **others}
    rights = {name: [outcome.right for outcome in outcomes] for name, outcomes in said.items()}
    rows = compared(rights, dict.fromkeys(said, kept))
    title = f"{len(chosen)} questions of the embedded set, percent; controls at the same count"
    show.print(tables.Table(HEADER, rows, title).drawn())
