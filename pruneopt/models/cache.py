"""What a cache remembers of the pruned prompt that filled it.

The state is an attribute of the cache object, so a copy of the cache carries its own copy of it.  Methods of
the cache that move its rows move the rows of the state with them.  The length of the cache is that of the
unpruned sequence: whoever asks counts positions or cuts known tokens off; what a layer really holds is
`held`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import torch

from pruneopt.errors import ModelError
from pruneopt.models.sequence import CacheState

_STATE = "_pruneopt_state"


def remember(cache: Any, state: CacheState) -> None:
    """Store what later steps on `cache` must know; the cache keeps it up to date from now on."""
    setattr(cache, _STATE, state)
    for name in _METHODS:
        if hasattr(type(cache), name):
            setattr(cache, name, _Method(cache, name))


def recall(cache: Any) -> CacheState | None:
    """The state that `remember` stored; None for a cache that no pruned prompt filled."""
    return getattr(cache, _STATE, None)


def held(cache: Any, layer: int) -> int:
    """Columns that one layer of a cache (or of None) really holds."""
    if cache is None or layer >= len(cache.layers):
        return 0
    return int(cache.layers[layer].get_seq_length())


# Arguments by position: the cache calls these in place of its own methods.


def _length(cache: Any, plain: Callable[..., Any], layer_idx: int = 0) -> int:  # noqa: PLR0917
    """The tokens seen so far, pruned ones included; of a named later layer the columns that it holds."""
    return held(cache, layer_idx) + (_removed(cache) if layer_idx == 0 else 0)


def _removed(cache: Any) -> int:
    """Columns of the prompt that the first layer never got."""
    state = recall(cache)
    if state is None or not state.segments or state.segments[0].layer > 0:
        return 0
    return state.columns - state.segments[0].width


def _crop(cache: Any, plain: Callable[..., Any], length: int) -> None:  # noqa: PLR0917
    """Take decoded tokens back: `length` is minus their number, or (older transformers) what is to be left.

    Raises ModelError where that reaches into the pruned prompt.
    """
    state, seen = recall(cache), int(cache.get_seq_length())
    going = -length if length <= 0 else max(0, seen - length)
    if state is not None and going > seen - state.columns:
        raise ModelError(
            f"the cache holds a pruned prompt of {state.columns} tokens and {seen - state.columns} after it; "
            f"{going} cannot be cropped off it. Crop no further than the end of the prompt, or run the "
            "prompt again"
        )
    if going:
        for layer in cache.layers:
            layer.crop(-going)


def _move_rows(cache: Any, plain: Callable[..., Any], rows: Any) -> Any:  # noqa: PLR0917
    """`rows`: an index tensor, or how often each row is repeated."""
    state, before = recall(cache), len(cache.layers[-1].keys)
    done = plain(rows)
    if state is not None:
        if isinstance(rows, int):
            rows = torch.arange(before).repeat_interleave(rows)
        setattr(cache, _STATE, state.take_rows(rows, before))
    return done


_METHODS: dict[str, Callable[..., Any]] = {
    "get_seq_length": _length,
    "crop": _crop,
    "reorder_cache": _move_rows,
    "batch_select_indices": _move_rows,
    "batch_repeat_interleave": _move_rows,
}


class _Method:
    """A method that stands in front of the cache's own.  It holds the cache weakly: a cycle would keep a dead
    cache's memory until the next garbage collection.
    """

    def __init__(self, cache: Any, name: str):
        self._cache, self._name = ref(cache), name

    def __deepcopy__(self, memo: dict[int, Any]) -> _Method:
        return _Method(memo[id(self._cache())], self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = self._cache()
        plain = partial(getattr(type(cache), self._name), cache)
        return _METHODS[self._name](cache, plain, *args, **kwargs)


__all__ = ["held", "recall", "remember"]
