"""Stands at the doors of a pruned model: what may not enter, and whether what entered was cut.

Hooks see nothing when the code that runs is not the code they hang on: a compiled graph, or a `forward` that
was put in the place of the class's own.  So every module that carries a hook, or holds one that does, is
looked at when a spec is applied and before every prompt; and a prompt that ends without a cut is an error.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.compat import effective_generation
from pruneopt.models.hooks import Around, Attachments
from pruneopt.models.prompt import has_pixels
from pruneopt.models.refuse import refuse_batches, refuse_call, refuse_generation
from pruneopt.models.sites import Site
from pruneopt.models.window import Window
from pruneopt.spec.schema import Spec

_COMPILED = "_torchdynamo_orig_callable"


class Guard:
    """Checks of one application of a spec to a model; `attach` after everything else is attached."""

    def __init__(self, adapter: ModelAdapter, spec: Spec, *, sites: Sequence[Site]):
        self.adapter = adapter
        self.cut = frozenset[int]().union(*(site.layers for site in sites))
        self.window = Window(adapter, spec, sites=sites)
        self.watched: list[tuple[str, nn.Module]] = []
        self._call = _Call()
        self._signature = inspect.signature(type(adapter.model).forward)

    def attach(self, attachments: Attachments, before_prompt: Callable[[], None]) -> None:
        """`before_prompt` runs before every `generate`.  Raises ModelError for replaced forwards."""
        model = self.adapter.model
        attachments.before(model, self._enter)
        attachments.after(model, self._leave, always=True)
        for layer in sorted(self.cut):
            attachments.before(self.adapter.layers[layer], self._ran(layer))
        hooked = set(map(id, attachments.modules))
        named = dict(model.named_modules())
        paths = [name.split(".") for name, module in named.items() if id(module) in hooked]
        above = {".".join(path[:n]) for path in paths for n in range(len(path) + 1)}
        self.watched = [(name, module) for name, module in named.items() if name in above]
        self.check_forwards()
        for name in ("generate_batch", "init_continuous_batching"):
            if hasattr(model, name):
                attachments.attribute(model, name, value=refuse_batches)
        generate: Any = model.generate
        attachments.attribute(model, "generate", value=self._generate(generate, before_prompt))

    def check_forwards(self) -> None:
        """Raise ModelError when a module that hooks depend on does not run its class's own forward."""
        for name, module in self.watched:
            if self.adapter.model.get_submodule(name) is not module:
                raise ModelError(
                    f"{_called(name)} was replaced after the spec was applied, so its hooks are gone; leave "
                    "the pruning context, replace it, and apply the spec again"
                )
            problem = _replaced(module)
            if problem:
                raise ModelError(
                    f"{_called(name)} {problem}, which goes round the hooks that prune; prune the plain "
                    "model: undo it before the spec is applied, or load the model again"
                )

    def _generate(self, generate: Callable[..., Any], before_prompt: Callable[[], None]) -> Any:
        """`generate` that refuses up front what pruning would make wrong."""
        signature = inspect.signature(generate)

        @wraps(generate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.check_forwards()
            bound = signature.bind_partial(*args, **kwargs).arguments
            given = {**bound.pop("kwargs", {}), **bound}
            settings = effective_generation(self.adapter.model, given)
            refuse_generation(settings, given)
            self.window.check_generation(settings, given)
            before_prompt()
            with self._call.expecting(pixels=has_pixels(given)):
                return generate(*args, **kwargs)

        return guarded

    # Arguments by position: torch calls hooks so.

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: PLR0917
        named = _named(self._signature, module, args=args, kwargs=kwargs)
        refuse_call(named)
        self.window.check_call(named)
        self._call.due, self._call.pending = has_pixels(named) or self._call.pending, False
        if self._call.due:
            self.check_forwards()
            self._call.ran = frozenset()

    def _ran(self, layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if self._call.due:
                self._call.ran |= {layer}

        return hook

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: PLR0917
        due, self._call.due = self._call.due, False
        if due and output is not None and self._call.ran != self.cut:
            raise ModelError(
                "a prompt with a picture went through the model but was not pruned: the decoder layers did "
                "not run through their hooks (was the model compiled or patched?); prune the plain model"
            )


class _Call(threading.local):
    """What one thread is in the middle of: does the next forward of a `generate` have to cut (`pending`), the
    one that runs (`due`), and which of the layers that a cut shortens ran.
    """

    pending = False
    due = False
    ran: frozenset[int] = frozenset()

    @contextmanager
    def expecting(self, *, pixels: bool) -> Iterator[None]:
        """A `generate` whose first forward must cut, although its pictures may be encoded ahead of it."""
        self.pending = pixels
        try:
            yield
        finally:
            self.pending = False


def _named(
    signature: inspect.Signature, module: nn.Module, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a call by name; what the signature does not know is left to the call itself."""
    try:
        found = dict(signature.bind_partial(module, *args, **kwargs).arguments)
    except TypeError:
        return dict(kwargs)
    return {**found.pop("kwargs", {}), **found}


def _called(name: str) -> str:
    return name or "the model"


def _replaced(module: nn.Module) -> str:
    """What is wrong with the way in which a module would run; empty when it is its class's own."""
    if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
        return "is compiled"
    found = module.__dict__.get("forward", type(module).forward)
    found = found.inner if isinstance(found, Around) else found
    compiled = hasattr(found, _COMPILED) or hasattr(type(module).forward, _COMPILED)
    if "_hf_hook" in module.__dict__:  # accelerate moves weights before and after the forward it found
        found = module.__dict__.get("_old_forward", found)
    own = getattr(found, "__func__", found) is type(module).forward
    if compiled or hasattr(found, _COMPILED):
        return "has a compiled forward"
    return "" if own else "has a forward that is not its class's own"
