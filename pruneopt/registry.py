"""Names to parts.

A file without a leading underscore in `pruneopt/parts/<kind>/` is the part of that name; so are kinds of
problem in `pruneopt/problems/kinds/`, and model families in `pruneopt/models/families/`.  Other packages
register theirs through entry points, one group per kind.  Both meet here, under one collision rule and in
one listing.  Nothing is imported until a name is asked for, a broken plugin hides nothing but itself, and
two that claim one name are both named.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from threading import Lock

from pruneopt import __version__
from pruneopt.errors import RegistryError, nearest

# Kind of part -> the package whose files are the built-in parts of that kind.
PACKAGES = {
    "costs": "pruneopt.parts.costs",
    "scores": "pruneopt.parts.scores",
    "kernels": "pruneopt.parts.kernels",
    "marginals": "pruneopt.parts.marginals",
    "solvers": "pruneopt.parts.solvers",
    "readouts": "pruneopt.parts.readouts",
    "steps": "pruneopt.parts.steps",
    "budgets": "pruneopt.parts.budgets",
    "insertions": "pruneopt.parts.insertions",
    "kinds": "pruneopt.problems.kinds",
    "models": "pruneopt.models.families",
    "sites": "pruneopt.models.sites",
}
GROUPS = tuple(PACKAGES)
PARTS = tuple(group for group, package in PACKAGES.items() if package.startswith("pruneopt.parts."))


@dataclass(frozen=True)
class Claim:
    """One package's claim on a name: `module:Class` of an entry point, or the module of a built-in part."""

    name: str
    target: str
    origin: str

    def load(self) -> type:
        """The class behind it.  Raises whatever importing the module raises, TypeError for no class."""
        module, _, attribute = self.target.partition(":")
        loaded = importlib.import_module(module)
        if attribute:
            found = getattr(loaded, attribute)
        else:
            answers = [value for value in vars(loaded).values() if _answers(value, self.name)]
            if len(answers) != 1:
                raise TypeError(f"{len(answers)} classes in {module} are called {self.name!r}, not one")
            found = answers[0]
        if not isinstance(found, type):
            raise TypeError(f"{self.target} is not a class")
        return found


def _answers(value: object, name: str) -> bool:
    """Whether `value` is the class of a file called `name`: a part of that name, or a family of that type."""
    if not isinstance(value, type):
        return False
    return getattr(value, "name", None) == name or name in getattr(value, "model_types", ())


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


def built_in(group: str) -> list[Claim]:
    """The parts of this package, read from the file system; nothing is imported."""
    folder = Path(__file__).parent.joinpath(*PACKAGES[group].split(".")[1:])
    names = sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))
    return [Claim(name, f"{PACKAGES[group]}.{name}", f"pruneopt {__version__}") for name in names]


def plugged_in(group: str) -> list[Claim]:
    """The parts that other packages register in the entry-point group `pruneopt.<group>`."""
    found = []
    for point in entry_points(group=f"pruneopt.{group}"):
        # Versions before 0.2 registered their own parts this way: a stale install must not dispute the files.
        if point.dist is not None and point.dist.name == "pruneopt":
            continue
        origin = "unknown distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        found.append(Claim(point.name, point.value, origin))
    return found


class Registry:
    """One group of names. Use `registry(group)`; construct one only in tests."""

    def __init__(self, group: str, claims: list[Claim] | None = None):
        self.group = group
        if claims is None:
            claims = built_in(group) + plugged_in(group)
        self._claims: dict[str, list[Claim]] = {}
        for claim in dict.fromkeys(claims):  # a distribution found twice on the path claims a name once
            self._claims.setdefault(claim.name, []).append(claim)
        self._loaded: dict[str, type] = {}
        self._lock = Lock()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._claims))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._claims

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
        if name not in self._claims:
            hint = MOVED.get((self.group, name))
            hint = nearest(name, self._claims) if hint is None else f", which is gone: {hint}"
            raise RegistryError(f"unknown {self.group.rstrip('s')} {name!r}{hint}")
        claims = self._claims[name]
        if len(claims) > 1:
            both = " and ".join(f"{c.origin} ({c.target})" for c in claims)
            cure = (
                "rename the plugin's" if any(":" not in c.target for c in claims) else "uninstall one of them"
            )
            raise RegistryError(f"{self.group} name {name!r} is claimed by {both}; {cure}")
        claim = claims[0]
        try:
            return claim.load()
        except Exception as error:
            raise RegistryError(
                f"{self.group} {name!r} from {claim.origin} cannot be loaded from {claim.target}: "
                f"{type(error).__name__}: {error}"
            ) from error

    @contextmanager
    def lent(self, name: str, found: type) -> Iterator[None]:
        """Answer `name` with a class that nobody registered, until the context is left: for checks of it."""
        claims, loaded = self._claims, self._loaded
        self._claims = {**claims, name: [Claim(name, found.__module__, "lent")]}
        self._loaded = {**loaded, name: found}
        try:
            yield
        finally:
            self._claims, self._loaded = claims, loaded

    def entries(self, *, check: bool = True) -> list[Entry]:
        """Every name with its origin; with `check` each is imported and its problem, if any, reported."""
        rows = []
        for name, claims in sorted(self._claims.items()):
            problem = ""
            if check:
                try:
                    self.get(name)
                except RegistryError as error:
                    problem = str(error)
            rows += [Entry(self.group, name, c.target, c.origin, problem) for c in claims]
        return rows


@cache
def registry(group: str) -> Registry:
    """The registry of a group, read once per process.

    Raises RegistryError for an unknown group.
    """
    if group not in PACKAGES:
        raise RegistryError(f"unknown kind of part {group!r}{nearest(group, PACKAGES)}")
    return Registry(group)
