"""Visual-token pruning as optimisation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module.  Resolved on first use, so that `import pruneopt` stays cheap.
_PUBLIC = {
    "Budget": "pruneopt.problems.budget",
    "Certificate": "pruneopt.problems.solution",
    "Pruner": "pruneopt.pruner",
    "PruneoptError": "pruneopt.errors",
    "Selection": "pruneopt.problems.selection",
    "Signals": "pruneopt.signals",
    "Solution": "pruneopt.problems.solution",
    "Spec": "pruneopt.spec.schema",
    "SpecError": "pruneopt.errors",
    "Status": "pruneopt.problems.solution",
    "SubsetProblem": "pruneopt.problems.subset",
    "TransportProblem": "pruneopt.problems.transport",
    "apply": "pruneopt.models.apply",
    "list_methods": "pruneopt.spec.load",
    "load_spec": "pruneopt.spec.load",
    "prune": "pruneopt.models.apply",
    "select": "pruneopt.pruner",
    "solve": "pruneopt.parts.solvers._solve",
}

if TYPE_CHECKING:
    from pruneopt.errors import PruneoptError, SpecError
    from pruneopt.models.apply import apply, prune
    from pruneopt.parts.solvers._solve import solve
    from pruneopt.problems.budget import Budget
    from pruneopt.problems.selection import Selection
    from pruneopt.problems.solution import Certificate, Solution, Status
    from pruneopt.problems.subset import SubsetProblem
    from pruneopt.problems.transport import TransportProblem
    from pruneopt.pruner import Pruner, select
    from pruneopt.signals import Signals
    from pruneopt.spec.load import list_methods, load_spec
    from pruneopt.spec.schema import Spec

__all__ = [
    "Budget", "Certificate", "Pruner", "PruneoptError", "Selection", "Signals", "Solution", "Spec",
    "SpecError", "Status", "SubsetProblem", "TransportProblem", "apply", "list_methods", "load_spec",
    "prune", "select", "solve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pruneopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
