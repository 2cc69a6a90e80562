"""TopV's problem on hidden states of the embedded model, captured with plain forward hooks."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pruneopt.demo.assets import load_inputs, load_model
from pruneopt.errors import InputError
from pruneopt.lab.pictures import first_questions
from pruneopt.lab.solvers.case import Case, from_tokens, grid

LAYER = 1  # the second decoder layer, where TopV looks


@lru_cache(maxsize=4)
def _captured(batch: int) -> tuple[Tensor, Tensor]:
    """`hidden_in` and `post_attention_norm` of layer 1 at the visual tokens, `[batch,N,D]` each."""
    questions = first_questions(batch)
    model, processor = load_model()
    inputs = load_inputs(questions, processor)
    layer = model.model.language_model.layers[LAYER]
    found: dict[str, Tensor] = {}

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: PLR0917 torch calls
        found["source"] = (args[0] if args else kwargs["hidden_states"]).detach()

    def after(module: Any, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: PLR0917 torch calls
        found["target"] = output.detach()

    hooks = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.post_attention_layernorm.register_forward_hook(after),
    ]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    visual = inputs["input_ids"] == model.config.image_token_id
    count = int(visual[0].sum())
    pick = visual[:, :, None]
    width = found["source"].shape[2]
    source, target = (found[k].masked_select(pick).view(batch, count, width) for k in ("source", "target"))
    return source.float(), target.float()


def tokens(n: int, batch: int) -> Case:
    """The `n` tokens of a centred window of the picture; InputError when the model has fewer."""
    source, target = _captured(batch)
    total = source.shape[1]
    if n > total:
        raise InputError(f"the embedded model sees {total} visual tokens per picture, fewer than {n}")
    side, _ = grid(total)
    small, size = grid(n)
    across, down = int(side[-1, 0]) + 1, int(side[-1, 1]) + 1
    if size[0, 0] > across or size[0, 1] > down:
        raise InputError(f"a window of {n} tokens does not fit a grid of {across} by {down}")
    left, top = (
        math.floor((have - int(want)) / 2) for have, want in zip((across, down), size[0], strict=True)
    )
    place = ((small[:, 1] + top) * across + small[:, 0] + left).long()
    return from_tokens("embedded", source[:, place], target=target[:, place], xy=small, size=size)


def fits(n: int) -> bool:
    """Whether the embedded model has that many visual tokens."""
    return n <= _captured(1)[0].shape[1]
