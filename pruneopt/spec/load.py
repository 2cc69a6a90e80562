"""Specs: methods as data.

A spec is YAML.  `kind` names a registered part and every other key of that mapping is one of its
parameters.  Loading resolves all defaults, refuses unknown keys, and yields frozen objects with a hash that
names runs.  Specs never name classes, never run code and never read the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from pruneopt.errors import PruneoptError, SpecError, blame, located, nearest
from pruneopt.spec.resolve import STAGE_KEYS, mixed, resolve
from pruneopt.spec.schema import ProblemSpec, Protect, Spec, StageSpec, Weighted
from pruneopt.spec.yamlfile import Document, is_plain, parse_value, read_yaml


def list_methods() -> list[str]:
    """Name all methods that ship with pruneopt.

    Returns
    -------
    list of str
        Sorted; a variant is `method/variant`.
    """
    root = files("pruneopt") / "methods"
    names = []
    for entry in root.iterdir():
        if entry.name.endswith(".yaml"):
            names.append(entry.name[:-5])
        elif entry.is_dir() and not entry.name.startswith("_"):
            names += [f"{entry.name}/{f.name[:-5]}" for f in entry.iterdir() if f.name.endswith(".yaml")]
    return sorted(names)


def load_spec(source: str | Path | Mapping[str, Any] | Spec, overrides: Iterable[str] = ()) -> Spec:
    """Load a method and fill in every default.

    Parameters
    ----------
    source
        A method name, the path of a YAML file, a mapping, or a Spec.
    overrides
        `key.path=value` each, applied in order.

    Returns
    -------
    Spec
        Frozen, with a hash over all that decides the result.

    Raises
    ------
    SpecError
        For an unknown method, key, part or value, naming the nearest known one, and for a file the line and
        column.
    """
    if isinstance(source, (Spec, Mapping)):
        return _load(source.to_spec() if isinstance(source, Spec) else dict(source), overrides)
    file, overrides = _read(source), list(overrides)
    try:
        return _load(file.data, overrides)
    except PruneoptError as error:
        key = error.key if error.key in file.marks else re.sub(r"^stages\.\d+\.", "", error.key)
        if any(touches(override, key) for override in overrides):
            raise  # what an override did is not in the file
        raise located(error, file.place(key)) from error


def touches(override: str, key: str) -> bool:
    """Whether an override sets this key, or something above or below it."""
    set_key = override.partition("=")[0].strip().replace("[", ".").replace("]", "").lstrip(".")
    return f"{key}.".startswith(f"{set_key}.") or f"{set_key}.".startswith(f"{key}.")


def _load(raw: Any, overrides: Iterable[str]) -> Spec:
    overrides = list(overrides)
    if not overrides and isinstance(raw, dict) and is_plain(raw) and not _refers(raw):
        _refuse_code(raw, "")
        return resolve(deepcopy(raw))
    try:
        config = OmegaConf.create(raw)
        if not isinstance(config, DictConfig):
            raise SpecError("a spec must be a mapping of keys, not a list or a single value")
        _refuse_code(OmegaConf.to_container(config, resolve=False), "")
        meant: dict[str, Any] = {}
        for override in overrides:
            with blame(override.partition("=")[0].strip()):
                config = _override(config, override, meant=meant)
                _refuse_idle(config, override)
        _settle(config, meant)
        data: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        words = str(error).splitlines()[0]
        raise SpecError(f"the spec cannot be read: {words}", key=str(error.full_key or "")) from error
    return resolve(data)


def _refers(value: Any) -> bool:
    """Whether plain data holds anything that stands for something else."""
    if isinstance(value, (dict, list)):
        return any(map(_refers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _read(source: str | Path) -> Document:
    text = str(source)
    if text in list_methods():
        return read_yaml(files("pruneopt") / "methods" / f"{text}.yaml", f"{text}.yaml")
    path = Path(text)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise SpecError(f"unknown method {text!r}{nearest(text, list_methods())}")
    if not path.is_file():
        raise SpecError(f"spec file {text!r} does not exist")
    return read_yaml(path, text)


def _refuse_code(value: Any, where: str) -> None:
    """Specs are data: no instantiation targets, no resolvers that could read anything outside the spec."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if str(key).startswith("_") and str(key).endswith("_"):
                raise SpecError(
                    f"{where}{key} is not allowed: specs name parts by `kind`, never classes",
                    key=f"{where}{key}",
                )
            _refuse_code(item, f"{where}{key}.")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_code(item, f"{where}{i}.")
    elif isinstance(value, str) and re.search(r"\$\{[^}]*:", value):
        key = where.rstrip(".")
        raise SpecError(f"{key} uses a resolver ({value}); specs cannot read the environment", key=key)


def _override(config: DictConfig, override: str, *, meant: dict[str, Any]) -> DictConfig:
    """The spec with an override; `meant` learns what references to a part meant that gave way to another."""
    if "=" not in override or override.startswith("="):
        raise SpecError(f"override {override!r} is not of the form key.path=value")
    key, _, text = override.partition("=")
    key = key.strip()
    try:
        new = parse_value(text)
    except SpecError as error:
        raise located(error, f"override {override!r}") from error
    _refuse_code({key.rpartition(".")[2]: new}, key.rpartition(".")[0] + ".")
    if key.endswith(".kind"):
        key, new = key.removesuffix(".kind"), {"kind": new}
    elif _part_path(key) and isinstance(new, str):
        new = {"kind": new}
    try:
        above = key.rpartition(".")[0]
        short = OmegaConf.select(config, above) if above else None
        if isinstance(short, str):  # a part written by its name alone gets its first parameter
            OmegaConf.update(config, above, {"kind": short}, merge=False)
        old = OmegaConf.select(config, key)
        if isinstance(old, DictConfig) and isinstance(new, dict):
            before: Any = OmegaConf.to_container(old, resolve=False)
            if new.get("kind", old.get("kind")) != old.get("kind"):
                meant |= _referring(config, key)
            new = mixed(before, new)
        OmegaConf.update(config, key, new, merge=False)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"override {override!r} does not fit the spec: {first}") from error
    return config


def _referring(config: DictConfig, key: str) -> dict[str, Any]:
    """What refers to a parameter of the part at `key`, by its own key, and what it stands for now."""
    found: dict[str, Any] = {}

    def walk(value: Any, where: str) -> None:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            here = f"{where}.{name}".lstrip(".")
            if isinstance(item, (dict, list)):
                walk(item, here)
            elif isinstance(item, str) and f"${{{key}." in item:
                with suppress(InterpolationKeyError):  # its part gave way before, and it was noted then
                    found[here] = OmegaConf.select(config, here)

    walk(OmegaConf.to_container(config, resolve=False), "")
    return found


def _settle(config: DictConfig, meant: Mapping[str, Any]) -> None:
    """Write down what references meant whose parameter has gone, once all overrides have been made."""
    for here, value in meant.items():
        try:
            OmegaConf.select(config, here)
        except InterpolationKeyError:
            OmegaConf.update(config, here, value, merge=False)


def _refuse_idle(config: DictConfig, override: str) -> None:
    """An override that every stage overrules would be silently without effect."""
    key = override.partition("=")[0].strip()
    stages = config.get("stages")
    if not stages or key.split(".")[0] not in STAGE_KEYS:
        return
    if all(OmegaConf.select(stage, key) is not None for stage in stages):
        raise SpecError(
            f"override {override!r} has no effect: every stage of this method sets {key} itself; "
            f"use stages.0.{override}"
        )


def _part_path(key: str) -> bool:
    parent, _, last = key.rpartition(".")
    sums = ("cost", "scores", "pairwise", "anchors", "marginals", "kernels")  # of the problem or of a part
    return last in ("solver", "readout", "insertion") or ("." in parent and parent.rpartition(".")[2] in sums)


__all__ = [
    "ProblemSpec", "Protect", "Spec", "StageSpec", "Weighted", "list_methods", "load_spec", "touches",
]  # fmt: skip
