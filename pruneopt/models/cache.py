"""What a cache remembers of the pruned prompt that filled it.

The state is an attribute of the cache object, so a copy of the cache carries its own copy of it.  Operations
that move or repeat the rows of the cache move the rows of the state with them.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch

from pruneopt.models.sequence import CacheState

_STATE = "_pruneopt_state"
_ROW_OPERATIONS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


def remember(cache: Any, state: CacheState) -> None:
    """Store what later steps on `cache` must know; the cache keeps it up to date from now on."""
    setattr(cache, _STATE, state)
    for name in _ROW_OPERATIONS:
        if hasattr(type(cache), name):
            setattr(cache, name, _RowOperation(cache, name))


def recall(cache: Any) -> CacheState | None:
    """The state that `remember` stored; None for a cache that no pruned prompt filled."""
    return getattr(cache, _STATE, None)


class _RowOperation:
    """A method of a cache that moves its rows.  It holds the cache weakly: a cycle would keep a dead cache's
    memory until the next garbage collection.
    """

    def __init__(self, cache: Any, name: str):
        self._cache, self._name = ref(cache), name

    def __deepcopy__(self, memo: dict[int, Any]) -> _RowOperation:
        return _RowOperation(memo[id(self._cache())], self._name)

    def __call__(self, rows: Any) -> Any:
        """`rows`: an index tensor, or how often each row is repeated."""
        cache = self._cache()
        state, before = recall(cache), _rows(cache)
        done = getattr(type(cache), self._name)(cache, rows)
        if state is not None:
            if isinstance(rows, int):
                rows = torch.arange(before).repeat_interleave(rows)
            setattr(cache, _STATE, state.take_rows(rows, before))
        return done


def _rows(cache: Any) -> int:
    return len(cache.layers[-1].keys)


__all__ = ["recall", "remember"]
