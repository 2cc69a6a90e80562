"""Selections of specs on a running model: the live half of `pruneopt cross`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruneopt.errors import InputError
from pruneopt.solution import Selection
from pruneopt.spec import Spec


def live_select(source: str, image: str, prompt: str) -> Callable[[Spec], Selection]:
    """A function that prefills one prompt under a spec and returns the selection of its first cut.

    `source` is a folder, a hub id, or `demo` (whose own sample is used when no image is given).
    Raises InputError without a picture, ModelError for a model that cannot be loaded.
    """
    model, inputs = _prepared(source, image, prompt)

    def select(spec: Spec) -> Selection:
        import torch

        from pruneopt.models.apply import prune

        with torch.no_grad(), prune(model, spec) as run:
            model(**inputs)
            return run.selections[0]

    return select


def _prepared(source: str, image: str, prompt: str) -> tuple[Any, Any]:
    from pruneopt.eval.images import open_image
    from pruneopt.models.load import build_inputs, load_model

    if source == "demo":
        from pruneopt.demo.assets import format_prompt, load_inputs, sample
        from pruneopt.demo.assets import load_model as load_demo

        model, processor = load_demo()
        if not image:
            return model, load_inputs([sample()], processor)
        return model, build_inputs(processor, open_image(image), format_prompt(prompt))
    if not image:
        raise InputError("--model needs --image, a picture file")
    model, processor = load_model(source)
    return model, build_inputs(processor, open_image(image), prompt)
