"""What is watched in a running model to capture what signals are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pruneopt.errors import ModelError


@dataclass(frozen=True)
class Watched:
    """The first `input`, the `output` or the whole `call` (`what`) of a module.

    It is the first of `names` that `owner` has, or `owner` itself without names.
    """

    owner: str
    what: str
    names: tuple[str, ...] = ()

    def module(self, owner: Any) -> nn.Module:
        """The module to watch.  Raises ModelError where `owner` has none of the names."""
        if not self.names:
            return owner  # type: ignore[no-any-return]
        found = [getattr(owner, name) for name in self.names if hasattr(owner, name)]
        if not found:
            raise ModelError(f"{type(owner).__name__} has no {self.names[-1]}, which a signal is made from")
        return found[0]  # type: ignore[no-any-return]
