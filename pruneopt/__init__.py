"""Visual-token pruning as optimisation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module.  Resolved on first use, so that `import pruneopt` stays cheap.
_PUBLIC = {
    "Budget": "pruneopt.problems",
    "Certificate": "pruneopt.solution",
    "Pruner": "pruneopt.pruner",
    "PruneoptError": "pruneopt.errors",
    "Selection": "pruneopt.solution",
    "Signals": "pruneopt.signals",
    "Solution": "pruneopt.solution",
    "Spec": "pruneopt.spec",
    "SpecError": "pruneopt.errors",
    "Status": "pruneopt.solution",
    "SubsetProblem": "pruneopt.problems",
    "TransportProblem": "pruneopt.problems",
    "apply": "pruneopt.models.apply",
    "list_methods": "pruneopt.spec",
    "load_spec": "pruneopt.spec",
    "prune": "pruneopt.models.apply",
    "select": "pruneopt.pruner",
    "solve": "pruneopt.solvers.solve",
}

if TYPE_CHECKING:
    from pruneopt.errors import PruneoptError, SpecError
    from pruneopt.models.apply import apply, prune
    from pruneopt.problems import Budget, SubsetProblem, TransportProblem
    from pruneopt.pruner import Pruner, select
    from pruneopt.signals import Signals
    from pruneopt.solution import Certificate, Selection, Solution, Status
    from pruneopt.solvers.solve import solve
    from pruneopt.spec import Spec, list_methods, load_spec

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
