"""Record of one GPU: is removal exact with the flash kernel forced, and what does pruning save.

    python experiments/prefill/gpu_record.py OUT COMMIT [preset ...]

Writes `OUT/oracle.json` and one `OUT/bench-PRESET.json` per preset; each file is written as soon as it is
known, so a run that is cut short leaves what it measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

import pruneopt
from pruneopt.lab.clock import Stopwatch
from pruneopt.lab.environment import environment
from pruneopt.lab.prefill.presets import build, prompt
from pruneopt.lab.prefill.run import Plan, measure
from pruneopt.lab.records import write_record
from pruneopt.spec.load import load_spec
from pruneopt.testing.masking import masked, real_columns

METHODS = ("topv", "fastv", "divprune", "cdpruner")
STEPS = 8


def steps(model: Any, inputs: Mapping[str, Any], tokens: torch.Tensor, kernel: Any) -> torch.Tensor:
    """Logits `[1+STEPS,B,V]` of the last prompt token and of forced tokens, with one kernel only."""
    with torch.inference_mode(), sdpa_kernel(kernel):
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        found = [out.logits[:, -1]]
        for i in range(STEPS):
            out = model(input_ids=tokens[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits[:, -1])
    return torch.stack(found).float()


def oracle(model: Any, preset: str, device: str) -> list[dict[str, Any]]:
    """Pruned with flash forced against an untouched model with the same keys masked.

    A mask rules the flash kernel out, so the reference runs on the memory-efficient or math kernel; `noise`
    is the difference that this change of kernel alone makes to the untouched model.
    """
    inputs = prompt(model, 1)
    tokens = torch.randint(3, 30000, (1, STEPS), generator=torch.Generator().manual_seed(2)).to(device)
    cuda = device.startswith("cuda")
    fused = [SDPBackend.FLASH_ATTENTION] if cuda and model.dtype != torch.float32 else [SDPBackend.MATH]
    other = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    dense = steps(model, inputs, tokens, fused)
    noise = dense - steps(model, inputs, tokens, other)
    rows = []
    for method, extra in (("topv", ["steps=[]"]), ("fastv", []), ("random", ["positions=keep"])):
        for keep in (0.5, 0.11):
            spec = load_spec(method, [f"budget.keep={keep}", *extra])
            with pruneopt.prune(model, spec) as run:
                found = steps(model, inputs, tokens, fused)
                kept = run.kept
            with ExitStack() as stack:
                stack.enter_context(
                    masked(model.model.language_model.layers, kept, real=real_columns(inputs))
                )
                wanted = steps(model, inputs, tokens, other)
            gap = (found - wanted).abs()
            rows.append(
                {
                    "preset": preset, "dtype": str(model.dtype), "kernel": fused[0].name, "method": method,
                    "keep": keep, "cut": min(kept), "largest_logit": float(wanted.abs().max()),
                    "max_difference": float(gap.max()), "per_step": [float(g.max()) for g in gap],
                    "noise_of_kernel_change": float(noise.abs().max()),
                    "effect_of_pruning": float((wanted - dense).abs().max()),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1])[:300], flush=True)
    return rows


def main(out: Path, commit: str, presets: list[str]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16
    found: list[dict[str, Any]] = []
    specs = [
        load_spec(method, [f"budget.keep={keep}", *(["steps=[]"] if method == "topv" else [])])
        for method in METHODS
        for keep in (0.5, 0.25, 0.11)
    ]
    begun = Stopwatch()
    for preset in presets:
        for dtype in (half, torch.float32) if preset.startswith(("llava", "tiny")) else (half,):
            model = build(preset, device=device, dtype=dtype)
            found += oracle(model, preset, device)
            where = environment(device, commit=commit)
            write_record(out / "oracle.json", {"kind": "oracle", "environment": where, "rows": found})
            if dtype == half:
                for batch in (1, 8):
                    plan = Plan(
                        preset, lambda model=model: model, specs, (batch,),
                        repeats=5 if batch == 1 else 3, decode=4, commit=commit,
                        file=f"bench-{preset}-b{batch}.json",
                    )  # fmt: skip
                    measure(plan, out, console=Console())
                    print(f"{preset} batch {batch} done after {begun.wall:.0f} s", flush=True)
            del model
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or ["llava-1.5-7b", "qwen2.5-vl-7b"])
