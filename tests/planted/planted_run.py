"""Run the suite on every planted part of a module."""

from __future__ import annotations

import inspect
from types import ModuleType

import planted_rest
import planted_subset
import planted_terms
import planted_transport
import torch

from pruneopt.parts import Part
from pruneopt.testing import check_part
from pruneopt.testing.core import Verdict

MODULES = (planted_rest, planted_subset, planted_terms, planted_transport)


def planted(module: ModuleType) -> dict[str, type[Part]]:
    """Part classes defined in a module."""
    return {
        f"{module.__name__.removeprefix('planted_')}.{name}": found
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, Part) and found.__module__ == module.__name__
    }


PLANTED = {name: found for module in MODULES for name, found in planted(module).items()}


def verdict(name: str) -> Verdict:
    """All checks on one planted part; parts that use the global generator get a fixed one."""
    torch.manual_seed(0)
    return check_part(PLANTED[name], on_fail="report")


if __name__ == "__main__":  # prints the matrix for kill_matrix.py
    for name in PLANTED:
        kills = sorted(outcome.check for outcome in verdict(name).failures)
        print(f'    "{name}": {kills},'.replace("'", '"'))
