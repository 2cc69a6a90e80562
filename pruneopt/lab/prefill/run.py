"""Dense and pruned prefill side by side: what the user waits for, with the selection in it.

Dense and pruned passes alternate within one process, after warm-up, each between two synchronisations, so
that a slow machine slows both.  Wall seconds are what counts; processor seconds are recorded beside them
because they do not suffer from other programs on a shared machine (single-threaded runs only).
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pruneopt
from pruneopt.lab.prefill.presets import build, prompt
from pruneopt.models.base import adapter_for
from pruneopt.models.report import mebibytes
from pruneopt.pruner import Clock
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

SELECTION = ("signals", "encoder signals", "cost", "solve", "readout", "steps", "apply")


@dataclass
class Watch:
    """Wall and processor seconds of modules, between synchronisations."""

    device: torch.device
    wall: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def around(self, modules: dict[str, nn.Module]) -> Any:
        """Time every call of each module; pre-hooks run first and post-hooks last of all hooks."""
        handles: list[Any] = []
        started: dict[str, tuple[float, float]] = {}

        def begin(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self.sync()
                started[name] = (time.perf_counter(), time.process_time())

            return hook

        def end(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self.sync()
                wall, processor = started[name]
                self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
                self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - processor

            return hook

        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(begin(name), prepend=True))
            handles.append(module.register_forward_hook(end(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _passes(
    model: Any, inputs: dict[str, Any], modules: dict[str, nn.Module], decode: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Wall and processor seconds of one prefill and of one decoded token (mean of `decode`)."""
    watch = Watch(model.device)
    with torch.inference_mode(), watch.around(modules):
        watch.sync()
        start = time.perf_counter()
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        watch.sync()
        wall = {"prefill": time.perf_counter() - start, **watch.wall}
        processor = dict(watch.processor)
    if decode:
        token = out.logits[:, -1:].argmax(-1)
        cache = out.past_key_values
        with torch.inference_mode():
            watch.sync()
            start = time.perf_counter()
            for _ in range(decode):
                out = model(input_ids=token, past_key_values=cache, use_cache=True)
            watch.sync()
        wall["decode_token"] = (time.perf_counter() - start) / decode
    return wall, processor


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and smallest of repeated measurements."""
    ordered = sorted(values)
    quarter = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": statistics.median(ordered), "q1": quarter[0], "q3": quarter[2], "min": ordered[0]}


def _peak(model: Any, inputs: dict[str, Any], decode: int) -> int | None:
    """Bytes that one prefill and decode allocate on top of the model (CUDA only)."""
    if model.device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _passes(model, inputs, {}, decode)
    return int(torch.cuda.max_memory_allocated() - before)


def measure_spec(
    model: Any, inputs: dict[str, Any], spec: Spec, repeats: int = 5, warmup: int = 2, decode: int = 8
) -> dict[str, Any]:
    """One row: dense and pruned, alternating; seconds are medians with quartiles.

    `language_model` times the text model with the selection in it; `speedup` is dense over pruned of that,
    `ideal` the ratio of multiply-adds of the decoder layers, `efficiency` their ratio.
    """
    adapter = adapter_for(model)
    modules = {"encoder": _tower(adapter), "language_model": adapter.text}
    wall: dict[str, dict[str, list[float]]] = {"dense": {}, "pruned": {}}
    processor: dict[str, dict[str, list[float]]] = {"dense": {}, "pruned": {}}
    report = None
    for turn in range(warmup + repeats):
        for kind in ("dense", "pruned"):
            if kind == "pruned":
                with pruneopt.prune(model, spec) as run:
                    seconds, cpu = _passes(model, inputs, modules, decode)
                    report = run.report
            else:
                seconds, cpu = _passes(model, inputs, modules, decode)
            if turn >= warmup:
                for name, value in seconds.items():
                    wall[kind].setdefault(name, []).append(value)
                for name, value in cpu.items():
                    processor[kind].setdefault(name, []).append(value)
    assert report is not None
    stages = _stages(model, inputs, spec, repeats)
    peaks = {"dense": _peak(model, inputs, decode)}
    with pruneopt.prune(model, spec):
        peaks["pruned"] = _peak(model, inputs, decode)
    ratios = [
        d / p for d, p in zip(wall["dense"]["language_model"], wall["pruned"]["language_model"], strict=True)
    ]
    cpu_ratios = [
        d / p
        for d, p in zip(
            processor["dense"]["language_model"], processor["pruned"]["language_model"], strict=True
        )
    ]
    ideal = 1 / report.flops_share
    dense_lm = statistics.median(wall["dense"]["language_model"])
    selection = sum(value["median"] for value in stages.values())
    return {
        "method": spec.name,
        "spec_hash": spec.hash,
        "keep": spec.stages[-1].budget.keep,
        "visual_tokens": report.visual_tokens[0],
        "kept": report.cuts[-1][1][0],
        "batch": report.batch,
        "dense": {name: spread(values) for name, values in wall["dense"].items()},
        "pruned": {name: spread(values) for name, values in wall["pruned"].items()},
        "selection": stages,
        "selection_seconds": selection,
        "selection_share_of_dense_language_model": selection / dense_lm,
        "rest_of_prefill": max(0.0, statistics.median(wall["pruned"]["language_model"]) - selection),
        "speedup": spread(ratios),
        "speedup_processor_time": spread(cpu_ratios),
        "ideal": ideal,
        "efficiency": statistics.median(ratios) / ideal,
        "efficiency_processor_time": statistics.median(cpu_ratios) / ideal,
        "flops_share": report.flops_share,
        "kv_bytes": {"dense": report.cache_dense, "pruned": sum(report.cache_found or [])},
        "peak_bytes": peaks,
        "repeats": repeats,
    }


def _tower(adapter: Any) -> nn.Module:
    for name in ("vision_tower", "visual", "vision_model"):
        if hasattr(adapter.base, name):
            found: nn.Module = getattr(adapter.base, name)
            return found
    raise AttributeError("no vision tower")


def _stages(model: Any, inputs: dict[str, Any], spec: Spec, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each part of the selection, every boundary synchronised, in passes of their own."""
    sync = torch.cuda.synchronize if model.device.type == "cuda" else None
    found: dict[str, list[float]] = {}
    with pruneopt.prune(model, spec, clock=lambda: Clock(sync)) as run:
        for turn in range(repeats + 1):
            _passes(model, inputs, {}, 0)
            if turn:
                for name, value in run.report.seconds.items():
                    found.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in found.items()}


def environment(device: str, commit: str | None = None) -> dict[str, Any]:
    """What the numbers depend on; `commit` where the code runs without its repository."""
    import transformers

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit or git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "pruneopt": pruneopt.__version__,
    }


def run_prefill_bench(
    out: Path | None,
    preset: str = "0.5b",
    methods: Sequence[str] = ("topv",),
    keeps: Sequence[float] = (0.5, 0.11),
    batches: Sequence[int] = (1,),
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    repeats: int = 5,
    decode: int = 8,
    overrides: Sequence[str] | Mapping[str, Sequence[str]] = (),
    model: Any = None,
    commit: str | None = None,
    inputs_of: Callable[[Any, int], dict[str, Any]] = prompt,
) -> list[dict[str, Any]]:
    """Measure every method, budget and batch on one model; write one JSON record when `out` is given.

    `overrides` holds for all methods, or per method when it is a mapping.  `model` replaces the preset, and
    `inputs_of(model, batch)` its prompt.
    """
    specs = []
    for method in methods:
        more = overrides.get(method, ()) if isinstance(overrides, Mapping) else overrides
        specs += [load_spec(method, [f"budget.keep={keep}", *more]) for keep in keeps]
    built = model if model is not None else build(preset, device, getattr(torch, dtype), attention)
    for spec in specs:  # layers and signals of all of them, before the first is measured
        with pruneopt.prune(built, spec):
            pass
    rows = []
    for batch in batches:
        inputs = inputs_of(built, batch)
        rows += [measure_spec(built, inputs, spec, repeats, decode=decode) for spec in specs]
    if out is not None:
        record = {
            "kind": "prefill",
            "preset": preset,
            "dtype": dtype,
            "attention": attention,
            "environment": environment(device, commit),
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.replace(out)
    return rows


def picture_inputs(processor: Any, image: Any, text: str) -> Callable[[Any, int], dict[str, Any]]:
    """Prompts of one picture, repeated over the batch, for a model with a processor."""
    from pruneopt.models.load import build_inputs

    def inputs(model: Any, batch: int) -> dict[str, Any]:
        found = build_inputs(processor, image, text)
        placed = {
            k: v.to(model.device, model.dtype) if v.is_floating_point() else v for k, v in found.items()
        }
        return {k: v.to(model.device).repeat(batch, *[1] * (v.dim() - 1)) for k, v in placed.items()}

    return inputs


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """A rich table of measured rows: milliseconds are medians."""
    from rich.table import Table

    out = Table(
        "method", "batch", "kept", "encoder", "dense LM", "pruned LM", "selection", "rest", "speed-up",
        "ideal", "ratio", "KV", "decode dense", "decode pruned", "peak dense", "peak pruned",
        title="prefill, ms",
    )  # fmt: skip

    def ms(seconds: float) -> str:
        return f"{1000 * seconds:.2f}"

    def peak(count: int | None) -> str:
        return "" if count is None else mebibytes(count)

    for row in rows:
        dense, pruned = row["dense"], row["pruned"]
        out.add_row(
            row["method"],
            str(row["batch"]),
            f"{row['kept']}/{row['visual_tokens']}",
            ms(dense["encoder"]["median"]),
            ms(dense["language_model"]["median"]),
            ms(pruned["language_model"]["median"]),
            f"{ms(row['selection_seconds'])} ({row['selection_share_of_dense_language_model']:.1%})",
            ms(row["rest_of_prefill"]),
            f"{row['speedup']['median']:.2f}",
            f"{row['ideal']:.2f}",
            f"{row['efficiency']:.2f}",
            f"{row['kv_bytes']['pruned'] / row['kv_bytes']['dense']:.0%}",
            ms(dense["decode_token"]["median"]) if "decode_token" in dense else "",
            ms(pruned["decode_token"]["median"]) if "decode_token" in pruned else "",
            peak(row["peak_bytes"]["dense"]),
            peak(row["peak_bytes"]["pruned"]),
        )
    return out
