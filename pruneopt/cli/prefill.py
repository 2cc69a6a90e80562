"""`pruneopt bench prefill --model`: a real model and picture instead of a preset."""

from __future__ import annotations

from typing import Any

from pruneopt.errors import InputError


def given_model(
    source: str, image: str | None, prompt: str, device: str, dtype: str, attention: str
) -> dict[str, Any]:
    """Model and inputs for the benchmark.  Raises InputError without a picture."""
    from pruneopt.bench.prefill import picture_inputs
    from pruneopt.eval.images import open_image
    from pruneopt.models.load import load_model

    if image is None:
        raise InputError("--model needs --image: the picture whose prompt is timed")
    picture = open_image(image)
    model, processor = load_model(source, dtype, attention)
    return {"model": model.to(device), "inputs_of": picture_inputs(processor, picture, prompt)}
