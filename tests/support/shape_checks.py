"""Shapes in annotations of pruneopt (`Float[Tensor, "B N"]`), checked while tests run and nowhere else.

A call is checked when it has returned, arguments and result together: what a function refuses, it refuses
in its own words, and what it accepts has the shapes that its signature promises.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

PACKAGE = Path(__file__).resolve().parents[2] / "pruneopt"


def annotated_modules() -> list[str]:
    """Modules that say shapes; the others are left as they are, so that they stay as fast."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if "from jaxtyping" in path.read_text("utf-8"))
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]


def install() -> None:
    """Hook the imports of those modules; call it before pruneopt is imported.

    `PRUNEOPT_SHAPES=off` leaves it out, for runs that wrap functions in their own way.
    """
    if os.environ.get("PRUNEOPT_SHAPES") != "off":
        install_import_hook(annotated_modules(), f"{__name__}.checked")


def checked(stub: Callable[..., Any]) -> Callable[..., Any]:
    """Type checker of jaxtyping: `stub` has a function's signature, and is called in its place.

    Before the call with a result of Any, after it with the real one; only the second is checked, and of its
    annotations only those with a shape.
    """
    hints = stub.__annotations__
    if hints.get("return") is Any or not any(map(_has_shape, hints.values())):
        return stub
    stub.__annotations__ = {name: hint if _has_shape(hint) else Any for name, hint in hints.items()}
    return beartype(stub)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
