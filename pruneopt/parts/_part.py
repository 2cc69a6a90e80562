"""What every part is, and how its parameters are declared.

A part is a frozen dataclass whose fields are its parameters.  Constructing one stores and range-checks
them, nothing else.  `needs` says which signals it reads; reading another raises.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pruneopt.errors import SpecError, blame, nearest
from pruneopt.parts._nested import Each, One, Slot, Sum

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec

P = TypeVar("P", bound="Part")

# Tags that a part has because a part inside it has them.
INHERITED = frozenset({"uses_positions", "uses_order", "stochastic", "across_batch", "host"})


def param(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
    doc: str = "",
) -> Any:
    """Declare a parameter of a part with its allowed range.

    Parameters
    ----------
    default
        Its value where a spec gives none; without one the spec must give it.
    low, high
        The range, ends included.
    above
        What the value must exceed.
    choices
        All values that are allowed.
    doc
        A few words for `pruneopt list`.

    Returns
    -------
    dataclasses.Field
        For the body of the part's class.
    """
    metadata = {"low": low, "high": high, "above": above, "choices": choices, "doc": doc}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part_param(base: type[Part], default: Any, *, doc: str = "") -> Any:
    """Declare a parameter that is itself a part.

    Parameters
    ----------
    base
        Its kind, such as `Score`.
    default
        What a spec would write.
    doc
        A few words for `pruneopt list`.

    Returns
    -------
    dataclasses.Field
        For the body of the part's class.
    """
    return _slot_param(One(base), default, doc=doc)


def sum_param(base: type[Part], default: Any, *, doc: str = "") -> Any:
    """Declare a parameter that is a labelled sum of parts, weighted and scaled as in `problem.scores`.

    Parameters
    ----------
    base, default, doc
        As in `part_param`.

    Returns
    -------
    dataclasses.Field
        For the body of the part's class.
    """
    return _slot_param(Sum(base), default, doc=doc)


def each_param(base: type[Part], defaults: Mapping[str, Any], *, doc: str = "") -> Any:
    """Declare a parameter that is one part for each of some labels, as in `problem.marginals`.

    Parameters
    ----------
    base
        As in `part_param`.
    defaults
        What a spec would write, by label.
    doc
        As in `part_param`.

    Returns
    -------
    dataclasses.Field
        For the body of the part's class.
    """
    return _slot_param(Each(base, defaults), {}, doc=doc)


def _slot_param(slot: Slot, default: Any, *, doc: str) -> Any:
    metadata = {"slot": slot, "doc": doc}
    return field(default_factory=lambda: slot.build(default, "the default"), metadata=metadata)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is Any:
        return True
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


_hints = functools.cache(typing.get_type_hints)


@dataclass(frozen=True)
class Part(ABC):
    """Anything that a spec can name by `kind`.

    Class attributes: `group` (the kind of part), `name` (the registered name), `source` (paper and section),
    `needs` (signals read; a property where it depends on parameters), `tags` (declared behaviour, checked by
    `pruneopt check`), `moved` (parameters that it no longer has, and what to write instead).
    """

    group: ClassVar[str]
    name: ClassVar[str]
    source: ClassVar[str] = ""
    tags: ClassVar[frozenset[str]] = frozenset()
    moved: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for item in fields(self):
            with blame(item.name):
                self._check(item, getattr(self, item.name), hint=hints[item.name])

    def _check(self, item: dataclasses.Field[Any], value: Any, *, hint: Any) -> None:
        where = f"{self.name}.{item.name}"
        if not _fits(value, hint):
            wanted = getattr(hint, "__name__", str(hint))
            raise SpecError(f"{where} must be {wanted}, got {value!r}")
        meta = item.metadata
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high, above = meta.get("low"), meta.get("high"), meta.get("above")
            if value != value:
                raise SpecError(f"{where} is NaN; give a number")
            if (low is not None and value < low) or (above is not None and value <= above):
                raise SpecError(f"{where} must be {_range(meta)}, got {value}")
            if high is not None and value > high:
                raise SpecError(f"{where} must be {_range(meta)}, got {value}")
        if meta.get("choices") and value not in meta["choices"]:
            known = meta["choices"]
            raise SpecError(f"{where} must be one of {', '.join(map(str, known))}, got {value!r}")
        if "slot" in meta:
            inside, base = meta["slot"].inside(value), meta["slot"].base
            if not inside:
                raise SpecError(f"{where} is empty; {self.name} needs at least one {base.group.rstrip('s')}")
            for key, part in inside.items():
                if not isinstance(part, base):
                    raise SpecError(f"{where}{key} must be a {base.__name__}, got {part!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that this part reads; unless it says otherwise those of the parts inside."""
        return frozenset().union(*(part.needs for part in self.nested.values()))

    @property
    def nested(self) -> dict[str, Part]:
        """The parts among the parameters, by dotted key."""
        slots = {f.name: f.metadata["slot"] for f in fields(self) if "slot" in f.metadata}
        return {
            f"{name}{key}": part
            for name, slot in slots.items()
            for key, part in slot.inside(getattr(self, name)).items()
        }

    def walk(self, key: str = "") -> Iterator[tuple[str, Part]]:
        """This part and all parts inside it, each with its dotted key below `key`."""
        yield key, self
        for below, part in self.nested.items():
            yield from part.walk(f"{key}.{below}".lstrip("."))

    @property
    def all_tags(self) -> frozenset[str]:
        """The tags, with those that the parts inside bring."""
        return self.tags.union(*(part.all_tags & INHERITED for part in self.nested.values()))

    def misfit(self, stage: StageSpec) -> str | None:
        """Why this part cannot stand beside the others of `stage`, or None.

        For parameters that two parts must agree on: say both keys.  Asked once, when a spec is resolved.
        """
        return None

    def to_spec(self) -> dict[str, Any]:
        """`{"kind": name, **parameters}` with every default filled in."""
        plain = {}
        for item in fields(self):
            slot, value = item.metadata.get("slot"), getattr(self, item.name)
            plain[item.name] = _plain(value) if slot is None else slot.plain(value)
        return {"kind": self.name, **plain}

    @classmethod
    def with_nested(cls, params: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Build the parts among the parameters.

        Parameters
        ----------
        params
            As a spec writes them.
        where
            Dotted key of this part.

        Returns
        -------
        dict
            The parameters, with parts in the place of what described them.
        """
        slots = {f.name: f.metadata["slot"] for f in fields(cls) if "slot" in f.metadata}
        out = dict(params)
        for key in slots.keys() & params.keys():
            here = f"{where}.{key}".lstrip(".")
            with blame(here):
                out[key] = slots[key].build(params[key], here)
        return out

    @classmethod
    def from_spec(cls: type[P], params: Mapping[str, Any]) -> P:
        """Build from parameters (without `kind`).

        Raises SpecError for unknown, missing, ill-typed or out-of-range ones.
        """
        known = {f.name: f for f in fields(cls)}
        params = cls.with_nested(params)
        for key in params:
            if key not in known:
                hint = f": {cls.moved[key]}" if key in cls.moved else nearest(key, known)
                raise SpecError(f"{cls.name} has no parameter {key!r}{hint}", key=key)
        for key, item in known.items():
            if key not in params and item.default is MISSING and item.default_factory is MISSING:
                raise SpecError(f"{cls.name} needs a value for {key!r}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _range(meta: Mapping[str, Any]) -> str:
    parts = []
    if meta.get("low") is not None:
        parts.append(f"at least {meta['low']}")
    if meta.get("above") is not None:
        parts.append(f"above {meta['above']}")
    if meta.get("high") is not None:
        parts.append(f"at most {meta['high']}")
    return " and ".join(parts)
