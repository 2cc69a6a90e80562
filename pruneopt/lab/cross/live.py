"""Selections of specs on a running model: the live half of `pruneopt cross`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pruneopt.problems.selection import Selection
from pruneopt.spec.schema import Spec

if TYPE_CHECKING:
    from PIL.Image import Image


def live_select(model: Any, processor: Any, *, picture: Image, prompt: str) -> Callable[[Spec], Selection]:
    """A function that prefills one prompt under a spec and returns the selection of its first cut."""
    from pruneopt.models.load import build_inputs

    inputs = build_inputs(processor, picture, prompt=prompt).to(model.device, model.dtype)

    def select(spec: Spec) -> Selection:
        import torch

        from pruneopt.models.apply import prune

        with torch.no_grad(), prune(model, spec) as run:
            model(**inputs)
            return run.selections[0]

    return select
