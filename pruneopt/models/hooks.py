"""Everything that is ever attached to a model, held in one place and removed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Attachments:
    """Hooks on module instances and attributes on objects; `remove` undoes all of them, in reverse."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """`hook(module, args, kwargs)` runs before the module and may return new `(args, kwargs)`."""
        self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, hook: Callable[..., Any], always: bool = False) -> None:
        """`hook(module, args, kwargs, output)` runs after the module; with `always` after an error too."""
        handle = module.register_forward_hook(hook, with_kwargs=True, always_call=always)
        self._undo.append(handle.remove)

    def watch(self, module: nn.Module, what: str, callback: Callable[[Any], None]) -> None:
        """Call back with the first `input`, the `output`, or the `(args, kwargs)` of a `call`; change "
        "none."""
        if what == "output":
            self.after(module, lambda _module, _args, _kwargs, output: callback(output))
            return

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if what == "call":
                callback((args, kwargs))
            else:
                callback(args[0] if args else next(iter(kwargs.values())))

        self.before(module, see)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an instance attribute that shadows a class attribute; removal deletes it again."""
        if name in owner.__dict__:
            raise RuntimeError(f"{name} is already set on this {type(owner).__name__}")
        owner.__dict__[name] = value
        self._undo.append(lambda: owner.__dict__.pop(name, None))

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()
