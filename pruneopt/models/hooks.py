"""Everything that is ever attached to a model, held in one place and removed together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

from torch import nn


class Attachments:
    """Hooks on module instances and attributes on objects; `remove` undoes all of them, in reverse.

    A deep copy of a module that something is attached to is a copy of the module as it was before.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._hooks: set[int] = set()
        self._names: dict[int, set[str]] = {}
        self.modules: list[nn.Module] = []  # that hooks were attached to

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """`hook(module, args, kwargs)` runs before the module and may return new `(args, kwargs)`."""
        self._hooked(module, module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any], *, always: bool = False) -> None:
        """`hook(module, args, kwargs, output)` runs after the module; with `always` after an error too."""
        self._hooked(module, module.register_forward_hook(hook, with_kwargs=True, always_call=always))

    # Arguments by position: captures are handed this, or a function like it that only lists what is asked.
    def watch(self, module: nn.Module, what: str, callback: Callable[[Any], None]) -> None:  # noqa: PLR0917
        """Call back with the first `input`, the `output`, or the `(args, kwargs)` of a `call`."""
        if what == "output":
            self.after(module, lambda _module, _args, _kwargs, output: callback(output))
            return

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if what == "call":
                callback((args, kwargs))
            else:
                callback(args[0] if args else next(iter(kwargs.values())))

        self.before(module, see)

    def attribute(self, owner: nn.Module, name: str, *, value: Any) -> None:
        """Set an instance attribute that shadows a class attribute; removal deletes it again."""
        if name in owner.__dict__:
            raise RuntimeError(f"{name} is already set on this {type(owner).__name__}")
        owner.__dict__[name] = value
        self._names.setdefault(id(owner), set()).add(name)
        self._undo.append(lambda: owner.__dict__.pop(name, None))
        self._copied_without(owner)

    def around(self, owner: nn.Module, name: str, *, call: Callable[..., Any]) -> None:
        """Run `call(inner, *args, **kwargs)` in the place of a method; removal restores what was there."""
        before = owner.__dict__.get(name)
        made = owner.__dict__[name] = Around(getattr(owner, name), call, before=before)

        def undo() -> None:
            made.call = None  # who holds it still gets the plain method
            if owner.__dict__.get(name) is not made:
                return  # replaced by somebody else meanwhile
            if before is None:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before

        self._undo.append(undo)
        self._copied_without(owner)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _hooked(self, module: nn.Module, handle: Any) -> None:
        self.modules.append(module)
        self._hooks.add(handle.id)
        self._undo.append(handle.remove)
        self._copied_without(module)

    def _copied_without(self, owner: Any) -> None:
        """From now on a deep copy of `owner` leaves out what is attached to it here."""
        copier = owner.__dict__.setdefault("__deepcopy__", _CleanCopy(owner, []))
        if self not in copier.without:
            copier.without.append(self)
            self._undo.append(lambda: copier.give_up(self))

    def own(self, owner: Any) -> tuple[set[str], set[int]]:
        """Attributes of `owner` that were set here, and the ids of all hooks of this object."""
        return self._names.get(id(owner), set()), self._hooks


class Around:
    """A method with something around it; told from a replaced one by its type.

    `inner` is what it was, `before` the instance attribute of that name, None for a method of the class.
    """

    def __init__(self, inner: Callable[..., Any], call: Callable[..., Any] | None, *, before: Any):
        update_wrapper(self, inner)
        self.inner, self.call, self.before = inner, call, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) if self.call is None else self.call(self.inner, *args, **kwargs)


@dataclass
class _CleanCopy:
    """`__deepcopy__` of one object while something is attached to it."""

    owner: Any
    without: list[Attachments]

    def __call__(self, memo: dict[int, Any]) -> Any:
        names, hooks = {"__deepcopy__"}, set[int]()
        for attachments in self.without:
            more, ids = attachments.own(self.owner)
            names, hooks = names | more, hooks | ids
        state = {}
        for name, value in self.owner.__dict__.items():
            if "hooks" in name and isinstance(value, dict):
                value = type(value)((key, hook) for key, hook in value.items() if key not in hooks)
            if isinstance(value, Around):
                value = value.before
                names |= {name} if value is None else set()
            if name not in names:
                state[name] = value
        kind: Any = type(self.owner)
        found = memo[id(self.owner)] = kind.__new__(kind)
        found.__setstate__(copy.deepcopy(state, memo))
        return found

    def give_up(self, attachments: Attachments) -> None:
        self.without.remove(attachments)
        if not self.without:
            self.owner.__dict__.pop("__deepcopy__", None)


__all__ = ["Around", "Attachments"]
