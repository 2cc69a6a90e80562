"""`pruneopt bench prefill`: dense and pruned prefill side by side, with the selection in it.

Dense and pruned passes alternate within one process, after warm-up, each between two synchronisations, so
that a slow machine slows both.  Wall seconds are what counts; processor seconds are recorded beside them
because they do not suffer from other programs on a shared machine (single-threaded runs only).
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import pruneopt
from pruneopt.lab.clock import Stopwatch, synchronise
from pruneopt.lab.environment import environment, setting
from pruneopt.lab.prefill.presets import prompt
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record
from pruneopt.lab.statistics import quartiles
from pruneopt.models.timing import timed
from pruneopt.pruner import Clock
from pruneopt.spec.schema import Spec

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Every spec at every batch size on one model.

    Parameters
    ----------
    preset : what the model is called in the record.  load : makes the model, when measuring begins.
    inputs_of : prompts `inputs_of(model, batch)` for it.
    repeats : measured passes.  decode : tokens decoded after each.
    file : name of the record.  commit : what the code is, where it runs without its repository.
    """

    preset: str
    load: Callable[[], Any]
    specs: Sequence[Spec]
    batches: Sequence[int] = (1,)
    repeats: int = 5
    decode: int = 8
    inputs_of: Callable[[Any, int], Inputs] = prompt
    file: str = "prefill.json"
    commit: str | None = None


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Measure every spec at every batch size; one record, `out/plan.file`."""
    model = plan.load()
    for spec in plan.specs:  # layers and signals of all of them, before the first is measured
        with pruneopt.prune(model, spec):
            pass
    where, rows = environment(str(model.device), commit=plan.commit), []
    with progress(console, "cells", total=len(plan.batches) * len(plan.specs)) as step:
        for batch in plan.batches:
            inputs = plan.inputs_of(model, batch)
            for spec in plan.specs:
                rows.append(measure_spec(model, inputs, spec=spec, repeats=plan.repeats, decode=plan.decode))
                step(1, f"{spec.name} batch {batch}")
    record = {"kind": "prefill", "preset": plan.preset, **setting(model), "environment": where, "rows": rows}
    write_record(out / plan.file, record)


@dataclass
class Times:
    """Wall and processor seconds of passes, one value a pass, by what they are of."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def add(self, wall: Mapping[str, float], processor: Mapping[str, float]) -> None:
        for into, values in ((self.wall, wall), (self.processor, processor)):
            for name, value in values.items():
                into.setdefault(name, []).append(value)


def measure_spec(
    model: Any, inputs: Inputs, *, spec: Spec, repeats: int = 5, warmup: int = 2, decode: int = 8
) -> dict[str, Any]:
    """One row: dense and pruned, alternating; seconds are medians with quartiles.

    `language_model` times the text model with the selection in it; `speedup` is dense over pruned of that,
    `ideal` the ratio of multiply-adds of the decoder layers, `efficiency` their ratio.
    """
    times = {"dense": Times(), "pruned": Times()}
    for turn in range(warmup + repeats):
        for side, each in (("dense", None), ("pruned", spec)):
            wall, processor, run = _pass(model, inputs, spec=each, decode=decode)
            if turn >= warmup:
                times[side].add(wall, processor)
    report = run.report  # of the last pruned pass
    stages = _stages(model, inputs, spec=spec, repeats=repeats)
    peaks = {"dense": _peak(model, inputs, decode=decode)}
    with pruneopt.prune(model, spec):
        peaks["pruned"] = _peak(model, inputs, decode=decode)
    dense, pruned = times["dense"], times["pruned"]
    ratios = _ratios(dense.wall, pruned.wall)
    processor_ratios = _ratios(dense.processor, pruned.processor)
    ideal = 1 / report.flops_share
    selection = sum(value["median"] for value in stages.values())
    return {
        "method": spec.name,
        "spec_hash": spec.hash,
        "keep": spec.stages[-1].budget.keep,
        "visual_tokens": report.visual_tokens[0],
        "kept": report.cuts[-1][1][0],
        "batch": report.batch,
        "dense": {name: quartiles(values) for name, values in dense.wall.items()},
        "pruned": {name: quartiles(values) for name, values in pruned.wall.items()},
        "selection": stages,
        "selection_seconds": selection,
        "selection_share_of_dense_language_model": selection
        / statistics.median(dense.wall["language_model"]),
        "rest_of_prefill": max(0.0, statistics.median(pruned.wall["language_model"]) - selection),
        "speedup": quartiles(ratios),
        "speedup_processor_time": quartiles(processor_ratios),
        "ideal": ideal,
        "efficiency": statistics.median(ratios) / ideal,
        "efficiency_processor_time": statistics.median(processor_ratios) / ideal,
        "flops_share": report.flops_share,
        "kv_bytes": {"dense": report.cache_dense, "pruned": sum(report.cache_found or [])},
        "peak_bytes": peaks,
        "repeats": repeats,
    }


def _ratios(dense: Mapping[str, list[float]], pruned: Mapping[str, list[float]]) -> list[float]:
    """Dense over pruned of the language model, turn by turn."""
    return [d / p for d, p in zip(dense["language_model"], pruned["language_model"], strict=True)]


def _pass(
    model: Any, inputs: Inputs, *, spec: Spec | None = None, decode: int = 0
) -> tuple[dict[str, float], dict[str, float], Any]:
    """Wall and processor seconds of one prefill and of a decoded token (mean of `decode`), and the run.

    The timer is attached before pruning, so that selection is included, and gone before tokens are decoded.
    """
    with torch.inference_mode(), ExitStack() as watched:
        times = watched.enter_context(timed(model))
        with nullcontext() if spec is None else pruneopt.prune(model, spec) as run:
            started = Stopwatch()
            out = model(**inputs, use_cache=True, logits_to_keep=1)
            wall = {"prefill": started.wall}
            watched.close()
            wall |= {"encoder": sum(times.encoder.wall), "language_model": times.prefill}
            processor = {"encoder": sum(times.encoder.processor), "language_model": times.text.processor[0]}
            if decode:
                token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                started = Stopwatch()
                for _ in range(decode):
                    model(input_ids=token, past_key_values=cache, use_cache=True)
                wall["decode_token"] = started.wall / decode
    return wall, processor, run


def _peak(model: Any, inputs: Inputs, *, decode: int) -> int | None:
    """Bytes that one prefill and decode allocate on top of the model (CUDA only)."""
    if model.device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _pass(model, inputs, decode=decode)
    return int(torch.cuda.max_memory_allocated() - before)


def _stages(model: Any, inputs: Inputs, *, spec: Spec, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each part of the selection, every boundary synchronised, in passes of their own."""
    sync = synchronise if model.device.type == "cuda" else None
    found: dict[str, list[float]] = {}
    with pruneopt.prune(model, spec, clock=lambda: Clock(sync)) as run:
        for turn in range(repeats + 1):
            _pass(model, inputs)
            if turn:
                for name, value in run.report.seconds.items():
                    found.setdefault(name, []).append(value)
    return {name: quartiles(values) for name, values in found.items()}


def picture_inputs(processor: Any, image: Any, *, text: str) -> Callable[[Any, int], Inputs]:
    """Prompts of one picture, repeated over the batch, for a model with a processor."""
    from pruneopt.models.load import build_inputs

    def inputs(model: Any, batch: int) -> Inputs:
        found = build_inputs(processor, image, prompt=text).to(model.device, model.dtype)
        return {k: v.repeat(batch, *[1] * (v.dim() - 1)) for k, v in found.items()}

    return inputs
