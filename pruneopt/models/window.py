"""Sliding windows: harmless while everything fits into them, refused before they would bind.

A window counts columns back from the query.  Removal brings far columns nearer, so a cut lets a bound window
hold other tokens than the unpruned model's.  While no column is out of reach, a windowed layer is a full one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.compat import reach
from pruneopt.models.sites import Site
from pruneopt.spec.schema import Spec


class Window:
    """The smallest window of the layers that work on fewer columns, or whose attention a signal reads.

    Raises ModelError for layers among them that are no attention layers with a known reach.
    """

    def __init__(self, adapter: ModelAdapter, spec: Spec, *, sites: Iterable[Site]):
        layers = set().union(*(site.layers for site in sites))
        for stage in spec.stages:
            cut = stage.insertion.layer_index
            for base, _, at in (name.partition("@") for name in stage.needs):
                if base.startswith(("attention", "lookahead")):
                    layers.add((int(at) if at else cut - 1) + base.startswith("lookahead"))
        found = [reach(adapter.text_config, adapter.layers[i].self_attn, layer=i) for i in sorted(layers)]
        self.size: int | None = min((n for n in found if n is not None), default=None)

    def check_generation(self, settings: Any, given: Mapping[str, Any]) -> None:
        """Raise ModelError when the prompt with all tokens that may follow is longer than the window."""
        if self.size is None:
            return
        prompt = next((given[k] for k in ("input_ids", "inputs", "inputs_embeds") if _is(given.get(k))), None)
        columns = 0 if prompt is None else prompt.shape[1]
        new = getattr(settings, "max_new_tokens", None)
        self._check(columns + max(new - 1, 0) if new is not None else columns)

    def check_call(self, named: Mapping[str, Any]) -> None:
        """Raise ModelError when a call, with everything before it, is longer than the window."""
        if self.size is None:
            return
        new = next((named[k] for k in ("input_ids", "inputs_embeds") if _is(named.get(k))), None)
        columns = seen(named.get("past_key_values")) + (0 if new is None else new.shape[1])
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            columns = max(columns, mask.shape[1])
        self._check(columns)

    def _check(self, columns: int) -> None:
        if self.size is not None and columns > self.size:
            raise ModelError(
                f"{columns} tokens do not fit into the sliding window of {self.size} of this language model; "
                "removal would change what the window holds. Shorten prompt and max_new_tokens, or use a "
                "configuration with full attention (sliding_window=None)"
            )


def seen(cache: Any) -> int:
    """Columns of the unpruned prompt and of everything after it that a cache stands for."""
    return 0 if cache is None else int(cache.get_seq_length())


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


__all__ = ["Window", "seen"]
