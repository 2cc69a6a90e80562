"""`demo` and `run`: a picture, a question, dense and pruned side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pruneopt.cli.catalogue import console
from pruneopt.cli.progress import progress
from pruneopt.errors import InputError
from pruneopt.eval.compare import Comparison, compare
from pruneopt.eval.images import open_image
from pruneopt.eval.metrics import mean_and_spread, paired, share
from pruneopt.eval.picture import save_overlay
from pruneopt.eval.survivors import survivor_panel
from pruneopt.spec import Spec, load_spec

_RANDOM_SEEDS = range(5)


def run_command(
    source: str,
    method: str,
    image: str,
    prompt: str,
    overrides: Sequence[str],
    out: str,
    max_new_tokens: int,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
) -> None:
    """Answer one prompt about one picture, dense and pruned, with any supported model."""
    spec = load_spec(method, overrides)
    if not prompt.strip():
        raise InputError("the prompt is empty; ask something about the picture")
    picture = open_image(image)
    model, processor = _load(source, dtype, attention, trust_remote_code)
    from pruneopt.models.load import build_inputs

    if source == "demo":
        from pruneopt.demo.assets import format_prompt

        prompt = format_prompt(prompt)
    inputs = build_inputs(processor, picture, prompt)
    result = compare(model, processor, inputs, spec, max_new_tokens)
    _show(result)
    name = f"{Path(image).stem}_{spec.name.replace('/', '-')}_{spec.hash}.png"
    path = save_overlay(picture, [survivor_panel(result.run)], Path(out) / name, prompt)
    console().print(Text(f"picture of the kept tokens: {path}"))


def _quiet() -> None:
    """No progress bars of transformers between our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _load(source: str, dtype: str, attention: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from pruneopt.models.load import dtype_of, load_model

    _quiet()
    if source == "demo":
        from pruneopt.demo.assets import load_model as load_demo

        return load_demo(dtype_of(dtype), attention)
    return load_model(source, dtype, attention, trust_remote_code)


def _show(result: Comparison, truth: str | None = None) -> None:
    table = Table("", "dense", "pruned", title="side by side")
    table.add_row("answer", Text(result.dense.answer), Text(result.pruned.answer))
    if truth is not None:
        table.add_row("truth", Text(truth), "")
    for name in ("encoder", "prefill", "decode"):
        row = [getattr(side, name) for side in (result.dense, result.pruned)]
        label = f"{name} of one token, ms" if name == "decode" else f"{name}, ms"
        table.add_row(label, *("-" if math.isnan(s) else f"{1000 * s:.1f}" for s in row))
    out = console()
    out.print(table)
    out.print(result.report)


def demo_command(method: str, overrides: Sequence[str], out: str, questions: int) -> None:
    """The main job on the embedded model."""
    from pruneopt.demo.assets import format_prompt, load_model, load_questions, sample
    from pruneopt.models.load import build_inputs

    start = time.perf_counter()
    spec = load_spec(method, overrides)
    show = console()
    _quiet()
    model, processor = load_model()
    question = sample()
    picture = open_image(question.image)
    show.print(Text(f"{question.image.name}: {question.question}", "bold"))
    result = compare(
        model, processor, build_inputs(processor, picture, format_prompt(question.question)), spec, 8
    )
    _show(result, question.answer)
    path = Path(out) / f"demo_{spec.name.replace('/', '-')}_{spec.hash}.png"
    heading = f"{question.question} (dense: {result.dense.answer}; pruned: {result.pruned.answer})"
    save_overlay(picture, [survivor_panel(result.run)], path, heading, question.box)
    show.print(Text(f"picture of the kept tokens: {path}"))
    if questions:
        from pruneopt.eval.accuracy import spread

        _accuracy(model, processor, spec, spread(load_questions(), questions), show)
    show.print(f"{time.perf_counter() - start:.0f} s")


def controls(spec: Spec, kept: int) -> dict[str, Spec]:
    """Random (several seeds) and uniform grid at the insertion point of `spec`, keeping `kept` tokens."""
    last = spec.stages[-1]
    place = {"insertion": last.insertion.to_spec(), "positions": spec.positions}
    budget = {"keep": kept if kept > 1 else 1e-9, "scope": "sample"}
    base = {**place, "budget": budget, "solver": "stable_top_k"}
    found = {
        f"random {seed}": load_spec(
            {
                **base,
                "name": "random",
                "problem": {"kind": "top_k", "scores": {"r": {"kind": "random", "seed": seed}}},
            }
        )
        for seed in _RANDOM_SEEDS
    }
    grid = {"kind": "top_k", "scores": {"grid": {"kind": "uniform_grid"}}}
    return {**found, "uniform grid": load_spec({**base, "name": "uniform_grid", "problem": grid})}


def _accuracy(model: Any, processor: Any, spec: Spec, chosen: Sequence[Any], show: Any) -> None:
    from pruneopt.eval.accuracy import answer

    with progress(show, "questions", len(chosen) * 8) as step:
        dense = answer(model, processor, chosen, None, on_batch=step)
        ours = answer(model, processor, chosen, spec, on_batch=step)
        kept = round(sum(o.kept or 0 for o in ours) / len(ours))
        others = {
            name: answer(model, processor, chosen, other, on_batch=step)
            for name, other in controls(spec, kept).items()
        }
    truth = [o.right for o in dense]
    table = Table(
        "method", "kept", "accuracy %, 95 % interval", "against dense, paired",
        title=f"{len(chosen)} questions of the embedded set, controls at the same count",
    )  # fmt: skip
    table.add_row("dense", "all", str(share(truth)), "")
    random = [[o.right for o in rows] for name, rows in others.items() if name.startswith("random")]
    right = [o.right for o in ours]
    table.add_row(spec.name, str(kept), str(share(right)), str(paired(right, truth)))
    pooled = [value for rows in random for value in rows]
    mean, deviation = mean_and_spread([sum(rows) / len(rows) for rows in random])
    table.add_row(
        f"random, {len(random)} seeds", str(kept),
        f"{100 * mean:.1f} +- {100 * deviation:.1f} over seeds", str(paired(pooled, truth * len(random))),
    )  # fmt: skip
    grid = [o.right for o in others["uniform grid"]]
    table.add_row("uniform grid", str(kept), str(share(grid)), str(paired(grid, truth)))
    show.print(table)
