"""`pruneopt.prune` and `pruneopt.apply`: a method on a model, for as long as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneopt.errors import ModelError
from pruneopt.models.base import adapter_for
from pruneopt.models.guard import Guard
from pruneopt.models.hooks import Attachments
from pruneopt.models.run import Run
from pruneopt.models.sites import sites_of
from pruneopt.models.wiring import Wiring
from pruneopt.pruner import Clock
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

_MARK = "_pruneopt_handle"


class Handle:
    """A method applied to a model until `remove()`; also a context manager.  `run` tells what it did."""

    def __init__(self, attachments: Attachments, wiring: Wiring):
        self._attachments, self._wiring, self.run = attachments, wiring, wiring.run

    def remove(self) -> None:
        """Restore the model exactly, once nothing runs on it; calling it again does nothing."""
        with self._wiring.lock:
            self._attachments.remove()

    def __enter__(self) -> Run:
        return self.run

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply(
    model: Any, spec: str | Path | Mapping[str, Any] | Spec, *, clock: Callable[[], Clock] | None = None
) -> Handle:
    """Prune every prompt that `model` runs from now on.

    Parameters
    ----------
    model
        A supported transformers model, in any attention setting.
    spec
        A method name, a path, a mapping or a Spec.
    clock
        Builds the clock of each stage; benchmarks pass one that waits for the device.

    Returns
    -------
    Handle
        Its `remove()` restores the model, its `run` tells what was kept.

    Raises
    ------
    SpecError
        For the spec.
    ModelError
        For a model, layer or signal that does not exist and for a model that is pruned already.  The model
        is untouched after an error.
    """
    resolved = spec if isinstance(spec, Spec) else load_spec(spec)
    adapter = adapter_for(model)
    if _MARK in adapter.base.__dict__:
        raise ModelError(
            f"this model is already pruned by {adapter.base.__dict__[_MARK].run.spec.name!r}; leave that "
            "context, or call remove() on its handle, first (several cuts belong into the stages of one "
            "spec)"
        )
    sites = sites_of(adapter, resolved)
    wiring = Wiring(adapter, resolved, sites=sites, clock=clock or Clock)
    guard = Guard(adapter, resolved, sites=sites)
    attachments = Attachments()
    handle = Handle(attachments, wiring)
    try:
        attachments.attribute(adapter.base, _MARK, value=handle)
        wiring.attach(attachments)
        guard.attach(attachments, wiring.forget_pictures)
        attachments.around(adapter.model, "generate", call=wiring.one_at_a_time)
    except BaseException:
        attachments.remove()
        raise
    return handle


@contextmanager
def prune(
    model: Any, spec: str | Path | Mapping[str, Any] | Spec, *, clock: Callable[[], Clock] | None = None
) -> Iterator[Run]:
    """Prune every prompt inside the context; leaving it, by any road, restores the model.

    Parameters
    ----------
    model, spec, clock
        As for `apply`, and so are the errors.

    Yields
    ------
    Run
        What was kept, and the report.
    """
    handle = apply(model, spec, clock=clock)
    try:
        yield handle.run
    finally:
        handle.remove()


__all__ = ["Handle", "apply", "prune"]
