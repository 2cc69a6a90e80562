"""From what a user types to the parts that are checked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pruneopt.errors import PruneoptError, RegistryError, SpecError, nearest
from pruneopt.parts import Part
from pruneopt.registry import GROUPS, PARTS, registry
from pruneopt.testing.core import Checked


def find_parts(target: str) -> list[type[Checked]]:
    """Part classes behind a target.

    A registered name (`sinkhorn`, or `scores/token_norm` for one group), a dotted path (`package.module`,
    `package.module:Class`), a Python file, or a folder: of a plugin, whose `pyproject.toml` names its
    parts, or of plain files.  Raises PruneoptError naming what could not be found.
    """
    path = Path(target)
    if path.is_dir():
        found = _from_folder(path)
    elif path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise PruneoptError(f"file {target!r} does not exist")
        found = _defined_in(_load_file(path))
    elif re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)?", target):
        found = _registered(target)
    elif re.fullmatch(r"[A-Za-z_][\w.]*(:\w+)?", target):
        found = _from_dotted(target)
    else:
        raise PruneoptError(f"{target!r} is no registered part, dotted path, file or folder")
    if not found:
        raise PruneoptError(f"{target!r} defines no part; subclass one of pruneopt.parts, such as CostTerm")
    return found


def _registered(target: str) -> list[type[Checked]]:
    group, _, name = target.rpartition("/")
    if group and group not in GROUPS:
        raise RegistryError(f"unknown kind of part {group!r}{nearest(group, GROUPS)}")
    groups = [group] if group else PARTS
    found = [registry(g).get(name) for g in groups if name in registry(g)]
    if found:
        return [part for part in found if issubclass(part, Checked)]
    if not group and importlib.util.find_spec(name) is not None:
        return _from_dotted(name)
    known = [n for g in groups for n in registry(g)]
    raise RegistryError(f"no part is registered as {name!r}{nearest(name, known)}")


def _from_dotted(target: str) -> list[type[Checked]]:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parent, _, last = module_name.rpartition(".")
        if attribute or not parent or error.name != module_name:
            raise PruneoptError(f"cannot import {module_name!r}: {error}") from error
        return _from_dotted(f"{parent}:{last}")
    except Exception as error:
        raise PruneoptError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    if not attribute:
        return _defined_in(module)
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, Checked)):
        raise PruneoptError(f"{module_name} has no part {attribute!r}{nearest(attribute, _names(module))}")
    return [found]


def _names(module: ModuleType) -> list[str]:
    return [found.__name__ for found in _defined_in(module)]


def _defined_in(module: ModuleType) -> list[type[Checked]]:
    """Concrete part classes that a module (or a module of its package) defines."""
    return [
        found
        for found in vars(module).values()
        if inspect.isclass(found)
        and issubclass(found, Checked)
        and not inspect.isabstract(found)
        and found.__module__.split(".")[0] == module.__name__.split(".")[0]
        and hasattr(found, "name")
    ]


def _load_file(path: Path) -> ModuleType:
    """Import a file under its own name; it stays importable, so that its parts can be pickled."""
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path.resolve()):
        name = f"pruneopt_checked_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise PruneoptError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PruneoptError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module


def _from_folder(folder: Path) -> list[type[Checked]]:
    project = folder / "pyproject.toml"
    if not project.is_file():
        files = sorted(p for p in folder.glob("*.py") if not p.name.startswith(("_", "test_", "conftest")))
        if not files:
            raise PruneoptError(f"{folder} holds neither a pyproject.toml nor Python files")
        return [part for path in files for part in _defined_in(_load_file(path))]
    try:
        data = tomllib.loads(project.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PruneoptError(f"{project} is not valid TOML: {error}") from error
    targets = list(_declared(data, project))
    if not targets:
        raise PruneoptError(
            f'{project} declares no part; add [project.entry-points."pruneopt.costs"] or alike'
        )
    for place in (folder, folder / "src"):
        if place.is_dir() and str(place.resolve()) not in sys.path:
            sys.path.insert(0, str(place.resolve()))
    found = []
    for name, target in targets:
        (part,) = _from_dotted(target)
        if part.name != name:
            raise PruneoptError(
                f"{project} registers {target} as {name!r}, but the part calls itself {part.name!r}"
            )
        found.append(part)
    return found


def _declared(data: Mapping[str, Any], project: Path) -> Iterator[tuple[str, str]]:
    points = data.get("project", {}).get("entry-points", {})
    for group, entries in points.items():
        if not group.startswith("pruneopt."):
            continue
        kind = group.removeprefix("pruneopt.")
        if kind not in GROUPS:
            raise PruneoptError(f"{project} has an unknown group {group!r}{nearest(kind, GROUPS)}")
        if kind in PARTS:
            yield from entries.items()


def build(part: type[Checked], params: Mapping[str, Any]) -> Checked:
    """An instance with parameters. Raises SpecError naming what is missing or wrong."""
    if not issubclass(part, Part):
        if params:
            raise SpecError(f"{part.name} is a kind of problem and has no parameters; leave out --param")
        return part()
    try:
        return part.from_spec(params)
    except SpecError as error:
        raise SpecError(f"{error}; give it with --param NAME=VALUE") from error
