"""YAML files read so that errors can say where: file, line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._yaml import get_yaml_loader  # its dialect of YAML, without the objects it wraps data in
from omegaconf.errors import OmegaConfBaseException

from pruneopt.errors import SpecError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml where there is one


@dataclass(frozen=True)
class Document:
    """Plain data of a file, and where each dotted key (`problem.cost.feature`, `steps.0`) is written."""

    name: str
    data: Any
    marks: Mapping[str, tuple[int, int]]

    def place(self, key: str) -> str:
        """`file:line:column` of a dotted key, or of the nearest key above it that is written."""
        while key and key not in self.marks:
            key = key.rpartition(".")[0]
        line, column = self.marks.get(key, (1, 1))
        return f"{self.name}:{line}:{column}"


def read_yaml(path: Path | Any, name: str) -> Document:
    """Read a file, or a resource of a package, that errors call `name`.

    Raises SpecError for something that is not readable, not text, or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=get_yaml_loader())
        if not isinstance(data, (dict, list)) or not is_plain(data):  # what it makes of anything else
            data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        return Document(name, data, dict(_marks(yaml.compose(text, Loader=_LOADER), "")))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        raise SpecError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except OSError as error:
        raise SpecError(f"{name!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{name!r} is not a text file (UTF-8): byte {error.start} is no text") from error
    except Exception as error:  # OmegaConf's own refusals, and a lone value that is no collection
        words = (str(error) or "a lone value; a mapping is needed").splitlines()[0]
        raise SpecError(f"{name!r} is not valid YAML: {words}") from error


def is_plain(value: Any) -> bool:
    """Whether this is made of what YAML and OmegaConf both hand on as it is, with words as keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


def parse_value(text: str) -> Any:
    """Plain data from the right-hand side of `key=text`. Raises SpecError for what is not YAML."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{text!r} is not a value: {problem}") from error


def _marks(node: yaml.Node | None, key: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every dotted key below a node with its line and column, counted from 1."""
    if isinstance(node, yaml.MappingNode):
        items = [(str(name.value), name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        items = [(str(i), value, value) for i, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in items:
        path = f"{key}.{name}" if key else name
        yield path, (mark.start_mark.line + 1, mark.start_mark.column + 1)
        yield from _marks(value, path)
