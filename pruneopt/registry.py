"""Names to parts: lazy class paths found through entry points.

Built-in parts are declared in this package's own `pyproject.toml` and come through the same door as
plugins.  Nothing is imported until a name is asked for, a broken plugin hides nothing but itself, and two
packages that claim one name are both named in the error.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from threading import Lock

from pruneopt.errors import RegistryError, nearest

GROUPS = (
    "costs",
    "scores",
    "kernels",
    "marginals",
    "solvers",
    "readouts",
    "steps",
    "budgets",
    "insertions",
    "models",
)


# Names that are gone, and what to write instead.
MOVED = {
    ("scores", "bipartite_similarity"): "write match_similarity, and keep the destinations with "
    "problem.protect.where: {kind: every_kth, stride: 2}",
    ("scores", "neighbour_redundancy"): "write twin_redundancy, and keep the odd tokens with "
    "problem.protect.where: {kind: every_kth, stride: 2}",
    ("solvers", "strided"): "write strided_fill",
    ("steps", "cluster_quota"): "write problem.kind: quota with problem.quota: {kind: vicinity_clusters}, "
    "solver quota_top_k and the step merge_groups",
    ("steps", "pool_grid"): "write replace_by_pool",
}


@dataclass(frozen=True)
class Entry:
    """One registered name: where it comes from, and what is wrong with it, if anything."""

    group: str
    name: str
    target: str
    origin: str
    problem: str = ""


def _origin(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist is not None else "unknown distribution"


class Registry:
    """One group of names. Use `registry(group)`; construct one only in tests."""

    def __init__(self, group: str, points: list[EntryPoint] | None = None):
        self.group = group
        if points is None:
            points = list(entry_points(group=f"pruneopt.{group}"))
        self._points: dict[str, list[EntryPoint]] = {}
        for point in points:
            same = self._points.setdefault(point.name, [])
            if (point.value, _origin(point)) not in [(p.value, _origin(p)) for p in same]:
                same.append(point)
        self._loaded: dict[str, type] = {}
        self._lock = Lock()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._points))

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def get(self, name: str) -> type:
        """The class behind a name.

        Raises RegistryError for an unknown name (with the nearest), for a name that two packages claim,
        and for a part whose module cannot be imported.
        """
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]

    def _load(self, name: str) -> type:
        if name not in self._points:
            hint = MOVED.get((self.group, name))
            hint = nearest(name, self._points) if hint is None else f", which is gone: {hint}"
            raise RegistryError(f"unknown {self.group.rstrip('s')} {name!r}{hint}")
        points = self._points[name]
        if len(points) > 1:
            claims = " and ".join(f"{_origin(p)} ({p.value})" for p in points)
            raise RegistryError(f"{self.group} name {name!r} is claimed by {claims}; uninstall one of them")
        point = points[0]
        module, _, attribute = point.value.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise RegistryError(
                f"{self.group} {name!r} from {_origin(point)} cannot be loaded from {point.value}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, type):
            raise RegistryError(f"{self.group} {name!r} from {_origin(point)}: {point.value} is not a class")
        return found

    def entries(self, check: bool = True) -> list[Entry]:
        """Every name with its origin; with `check` each is imported and its problem, if any, reported."""
        rows = []
        for name, points in sorted(self._points.items()):
            problem = ""
            if check:
                try:
                    self.get(name)
                except RegistryError as error:
                    problem = str(error)
            rows += [Entry(self.group, name, p.value, _origin(p), problem) for p in points]
        return rows


@cache
def registry(group: str) -> Registry:
    """The registry of a group, read once per process.

    Raises RegistryError for an unknown group.
    """
    if group not in GROUPS:
        raise RegistryError(f"unknown kind of part {group!r}{nearest(group, GROUPS)}")
    return Registry(group)
