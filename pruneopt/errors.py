"""Every error and warning that pruneopt raises on purpose.

A message says what was wrong, where, and what to do.  The CLI prints it on one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PruneoptError(Exception):
    """Base class: catch this to catch every refusal of pruneopt.

    Parameters
    ----------
    message
        What was wrong, where, and what to do.
    key
        Dotted key of the spec that is to blame, where there is one.
    """

    def __init__(self, message: str = "", *, key: str = ""):
        super().__init__(message)
        self.key = key


class SpecError(PruneoptError):
    """A spec, an override or a part parameter is not acceptable.

    Parameters
    ----------
    message, key
        As in `PruneoptError`.
    """


class RegistryError(PruneoptError):
    """A named part is unknown, broken or registered twice."""


class SignalError(PruneoptError):
    """A signal is undeclared, missing, of a wrong shape, or not finite."""


class ProblemError(PruneoptError):
    """A transport or subset problem is malformed (shape, dtype, NaN, infeasible budget)."""


class ModelError(PruneoptError):
    """A model, layer, mode or input that the adapter cannot prune."""


class InputError(PruneoptError):
    """A file, picture or prompt that cannot be used."""


class CostBlindReadoutWarning(UserWarning):
    """The chosen readout cannot depend on the cost for the chosen solver settings."""


@contextmanager
def blame(key: str) -> Iterator[None]:
    """Refusals raised inside are about this dotted key of a spec, or about the key below it they name."""
    try:
        yield
    except PruneoptError as error:
        if key and not f"{error.key}.".startswith(f"{key}."):
            error.key = f"{key}.{error.key}".rstrip(".")
        raise


def located(error: PruneoptError, place: str) -> PruneoptError:
    """The same refusal with the place it happened at in front of its words."""
    return type(error)(f"{place}: {error}", key=error.key)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or the list of what exists."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
