"""What an insertion test is about: a model family, its batches, and the cuts that are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import pruneopt
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

# Kernels round in an order of their own on every processor and for every number of threads: models of five
# layers differ by up to 2.4e-6 in float32 and by 1e-15 in float64, whatever runs them.  So test in float64.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
STEPS = 8

_CHANCE = load_spec("random", ["problem.scores.random.seed=3"]).to_spec()
_TOP = {"name": "check", "problem": _CHANCE["problem"], "solver": _CHANCE["solver"]}


def cut_spec(insertion: Mapping[str, Any], keep: Any, *, positions: str = "keep") -> dict[str, Any]:
    return {**_TOP, "insertion": insertion, "budget": {"keep": keep}, "positions": positions}


ENTRY = cut_spec({"kind": "post_encoder"}, 0.4)
LAYER = cut_spec({"kind": "prefill_layer", "layer": 2}, 0.5)
SEVERAL = cut_spec({"kind": "prefill_layer", "layer": [1, 3]}, [0.7, 0.3])
KEEP_ALL = cut_spec({"kind": "prefill_layer", "layer": 1}, 1.0)


@dataclass(frozen=True)
class InsertionCase:
    """One model family under test.

    Parameters
    ----------
    name
        For messages.
    build
        A fresh model in evaluation mode for an attention setting, always with the same weights.  It has at
        least four decoder layers, and is in float64, where a right removal is exact to 1e-12 on any
        processor.
    scenarios
        Batches of model inputs by name: single, batch, left and right padding, two images, ...
    rows
        For some scenarios the rows of the batch as inputs of their own.
    decoder
        The decoder layers of a model.
    text
        The module that holds them.
    specs
        The cuts that are tried.
    attention
        The attention settings that are tried.
    apply
        What is tested, called as `pruneopt.apply`; planted bugs put something else here.
    """

    name: str
    build: Callable[[str], Any]
    scenarios: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    decoder: Callable[[Any], Sequence[nn.Module]] = lambda model: model.model.language_model.layers
    text: Callable[[Any], nn.Module] = lambda model: model.model.language_model
    specs: Sequence[Any] = (ENTRY, LAYER, SEVERAL)
    attention: Sequence[str] = ("sdpa", "eager")
    apply: Callable[..., Any] = pruneopt.apply

    @contextmanager
    def applied(self, model: Any, spec: Any) -> Iterator[Any]:
        """Yields the handle of `apply`, and removes it by whatever road the block is left."""
        handle = self.apply(model, spec)
        try:
            yield handle
        finally:
            handle.remove()


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check: `problem` is empty when it passed."""

    check: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def label(spec: Any) -> str:
    loaded = spec if isinstance(spec, Spec) else load_spec(spec)
    cuts = "+".join(str(stage.insertion.layer_index) for stage in loaded.stages)
    return f"cut before layer {cuts}"


def tolerance(model: Any) -> float:
    return TOLERANCE[next(model.parameters()).dtype]
