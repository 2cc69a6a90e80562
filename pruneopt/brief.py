"""Words about tensors: short representations of what holds them, refusals of what is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from torch import Tensor

from pruneopt.errors import PruneoptError

_EMPTY: tuple[Any, ...] = (None, (), "", {})


def describe(tensor: Tensor) -> str:
    """`float32[2,576,4096]`, with the device where it is not the CPU."""
    kind = str(tensor.dtype).removeprefix("torch.")
    shape = ",".join(str(size) for size in tensor.shape)
    return f"{kind}[{shape}]" + ("" if tensor.device.type == "cpu" else f" on {tensor.device}")


def want_tensor(what: str, value: Any, *, error: type[PruneoptError]) -> None:
    """Raise `error` for anything but a tensor or None."""
    if value is not None and not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise error(f"{what} must be a torch tensor, got {kind}; torch.as_tensor makes one")


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return describe(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple):
        return "(" + ", ".join(dict.fromkeys(_word(item) for item in value)) + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value)


class Brief:
    """A dataclass whose representation describes tensors instead of printing them.

    Empty fields are left out, equal items of a tuple are said once.  It never waits for a device.  Decorate
    the dataclass with `repr=False`.
    """

    def __repr__(self) -> str:
        found = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        shown = [f"{k}={_word(v)}" for k, v in found.items() if isinstance(v, Tensor) or v not in _EMPTY]
        return f"{type(self).__name__}({', '.join(shown)})"
