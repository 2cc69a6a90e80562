"""A pairwise term by rows in the place of a matrix.

Whoever knows `Rows` asks for rows.  Everybody else reads it as the tensor that it stands for, which is then
computed, once; where that would not fit, the reader is refused and told who needs no matrix.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pruneopt.errors import ProblemError
from pruneopt.problems.rows import Rows, Stored
from pruneopt.registry import registry

WHOLE = 2**30  # bytes of a matrix above which a term is stated by rows to solvers that read rows
SHARE = 3  # a solver holds the matrix and a copy in float64


class Unstored(Tensor):
    """`[B,N,M]` whose entries are computed when they are read; `rows` says how."""

    rows: Rows
    _whole: Tensor | None

    @staticmethod
    def __new__(cls, rows: Rows) -> Unstored:
        like = rows.like
        made = Tensor._make_wrapper_subclass(cls, rows.shape, dtype=like.dtype, device=like.device)
        made.rows, made._whole = rows, None
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, *given: Any) -> Any:  # type: ignore[override]
        def read(value: Any) -> Any:
            return value.whole() if isinstance(value, Unstored) else value

        args, kwargs = (*given, {}, {})[:2]
        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))

    def __getitem__(self, index: Any) -> Tensor:
        """Some samples stay unstored; everything else is read."""
        return Unstored(self.rows.samples(index)) if isinstance(index, slice) else self.whole()[index]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Unstored({type(self.rows).__name__} {list(self.shape)})"

    @property
    def read(self) -> bool:
        """Whether somebody has read it as a matrix."""
        return self._whole is not None

    def whole(self) -> Tensor:
        """The matrix. Raises ProblemError where it would not fit."""
        if self._whole is None:
            refuse_large(*self.rows.shape[:2], device=self.device)
            self._whole = self.rows.dense()
        return self._whole


def rows_of(pairwise: Tensor | None) -> Rows:
    """How to read rows of the pairwise term of a problem that has one, stored or not."""
    assert pairwise is not None
    return pairwise.rows if isinstance(pairwise, Unstored) else Stored(pairwise)


def matrix_bytes(batch: int, tokens: int) -> int:
    """What the pairs of some tokens would take in float32."""
    return 4 * batch * tokens**2


def refuse_large(batch: int, tokens: int, *, device: torch.device) -> None:
    """Raise ProblemError where the memory of a device cannot hold the pairs of so many tokens."""
    asked, there = matrix_bytes(batch, tokens), _memory(device)
    if asked * SHARE <= there:
        return
    solvers: Any = registry("solvers")
    able = (name for name in solvers if "rows" in solvers.get(name).tags)
    raise ProblemError(
        f"the pairwise term of {batch} x {tokens} tokens is a matrix of {asked / 1e9:.3g} GB, and a solver "
        f"that reads the whole of it needs {SHARE} times that of the {there / 1e9:.3g} GB here. Use one that "
        f"reads rows ({', '.join(able)}), smaller batches, or budget.scope=group"
    )


def _memory(device: torch.device) -> int:
    """Bytes of memory that a device has, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
