"""One pass after a pruned prompt: decoded tokens, or more text on the same cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import held
from pruneopt.models.sequence import CacheState, Segment, rotary_of, segment_mask


class Decode:
    """State of one pass on a cache that a pruned prompt filled.

    The length of such a cache is that of the unpruned sequence, so positions need no care under `keep`; under
    `compact` each layer counts on from its own end.

    Raises ModelError for an attention mask that does not cover everything so far.
    """

    def __init__(self, adapter: ModelAdapter, inputs: Mapping[str, Any], *, state: CacheState, seen: int):
        self.adapter, self.state = adapter, state
        self.tail = _tail(inputs, state, seen=seen)
        self.masks: dict[int, Any] = {}

    def text_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None

    def positions_are(self, ids: Tensor) -> None:
        pass

    def before_layer(self, index: int, hidden: Tensor, *, kwargs: Mapping[str, Any]) -> Any:
        """The arguments of a layer that works on a pruned prompt; None for one that holds all of it."""
        segment = self.state.at(index)
        if segment is None:
            return None
        past = held(kwargs.get("past_key_values"), index)
        changed: dict[str, Any] = {"position_ids": None}
        if segment.following is not None:
            changed["position_embeddings"] = self._following(segment, hidden, past=past)
        if segment.layer not in self.masks:
            self.masks[segment.layer] = segment_mask(
                self.adapter, segment, hidden=hidden, past=past, tail=self.tail
            )
        return hidden, {**changed, "attention_mask": self.masks[segment.layer]}

    def after_layer(self, index: int, output: Tensor) -> None:
        return None

    def finish(self, output: Any) -> None:
        return None

    def _following(self, segment: Segment, hidden: Tensor, *, past: int) -> tuple[Tensor, Tensor]:
        """Rotary embedding of decoded columns under `compact`."""
        assert segment.following is not None
        start = segment.following + (past - segment.width)
        if start.shape[0] != hidden.shape[0]:
            start = start.repeat_interleave(hidden.shape[0] // start.shape[0], dim=0)
        ids = start + torch.arange(hidden.shape[1], device=hidden.device)
        rope = getattr(self.adapter.text_config, "rope_parameters", None) or {}
        return rotary_of(
            self.adapter, hidden, positions=ids.expand(3 if "mrope_section" in rope else 1, -1, -1)
        )


def _tail(inputs: Mapping[str, Any], state: CacheState, *, seen: int) -> Tensor | None:
    """`[B, columns after the prompt]` of the attention mask; None when none of them is padding."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    ids = inputs.get("input_ids")
    new = (ids if ids is not None else inputs["inputs_embeds"]).shape[1]
    if mask.shape[1] != seen + new:
        raise ModelError(
            f"{new} new tokens follow {seen} seen ones but the attention mask has {mask.shape[1]} columns; "
            "after a pruned prompt pass only the new tokens as input_ids, with the mask of all"
        )
    tail = mask[:, state.columns :]
    return None if bool(tail.all()) else tail
