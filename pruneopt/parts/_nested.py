"""Parts inside parts: a parameter that is one part, a labelled sum of parts, or one part for each label.

A slot says which; it builds the value from plain data, writes it back, and lists the parts inside by key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pruneopt.errors import PruneoptError, RegistryError, SpecError, blame, located, nearest
from pruneopt.registry import PACKAGES, registry

if TYPE_CHECKING:
    from pruneopt.parts._part import Part

NORMALIZATIONS = ("none", "minmax", "sum", "max", "zscore", "l2", "softmax")


@dataclass(frozen=True)
class Weighted:
    """One summand of a sum of parts.

    Parameters
    ----------
    label
        What the spec calls it.
    part
        What is summed.
    weight
        Of any sign.
    normalize
        How the output is scaled per problem before it is weighted.
    """

    label: str
    part: Part
    weight: float = 1.0
    normalize: str = "none"

    def __post_init__(self) -> None:
        if self.external and self.normalize != "none":
            raise SpecError(
                f"{self.label}: {self.part.name} reaches external points and is not scaled; remove normalize"
            )

    @property
    def external(self) -> bool:
        """Whether the part is a cost of external points, of shape `anchor`."""
        return getattr(self.part, "shape", "") == "anchor"

    def to_spec(self) -> dict[str, Any]:
        """The part as a spec writes it, with weight and scaling."""
        return {**self.part.to_spec(), "weight": self.weight, "normalize": self.normalize}


@dataclass(frozen=True)
class Slot(ABC):
    """What a nested parameter holds, all of it of the kind `base`."""

    base: type[Part]

    @abstractmethod
    def build(self, data: Any, where: str) -> Any:
        """The value from plain data; what is built already stays.  `where` is the dotted key."""

    @abstractmethod
    def plain(self, value: Any) -> Any:
        """The value as plain data."""

    @abstractmethod
    def inside(self, value: Any) -> dict[str, Part]:
        """The parts of the value, by dotted key below the parameter."""


@dataclass(frozen=True)
class One(Slot):
    """One part."""

    def build(self, data: Any, where: str) -> Any:
        return data if isinstance(data, self.base) else build_part(self.base, data, where=where)

    def plain(self, value: Any) -> Any:
        return value.to_spec()

    def inside(self, value: Any) -> dict[str, Part]:
        return {"": value}


@dataclass(frozen=True)
class Sum(Slot):
    """A mapping from labels to weighted parts, kept in the order of the labels."""

    def build(self, data: Any, where: str) -> Any:
        return data if _built(data) else build_sum(self.base, data, where=where)

    def plain(self, value: Any) -> Any:
        return {s.label: s.to_spec() for s in value}

    def inside(self, value: Any) -> dict[str, Part]:
        return {f".{s.label}": s.part for s in value}


@dataclass(frozen=True)
class Each(Sum):
    """One unweighted part for each of the labels, with what stands where nothing is said."""

    defaults: Mapping[str, Any] = field(default_factory=dict)

    def build(self, data: Any, where: str) -> Any:
        if _built(data):
            return data
        known_keys(data, self.defaults, where=f"{where}.")
        said = {**self.defaults, **data}
        return tuple(Weighted(k, build_part(self.base, said[k], where=f"{where}.{k}")) for k in self.defaults)

    def plain(self, value: Any) -> Any:
        return {s.label: s.part.to_spec() for s in value}


def _built(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(s, Weighted) for s in value)


def known_keys(data: Any, known: Iterable[str], *, where: str) -> None:
    """Raise SpecError unless `data` is a mapping whose keys are all known; `where` ends in a dot."""
    if not isinstance(data, Mapping):
        key = where.rstrip(".")
        raise SpecError(f"{key or 'the spec'} must be a mapping, got {data!r}", key=key)
    for key in data:
        if key not in known:
            raise SpecError(f"unknown key {where}{key}{nearest(str(key), known)}", key=f"{where}{key}")


def build_part(base: type[Part], data: Any, *, where: str) -> Any:
    """The part of kind `base` that `data` names: a name, or a mapping of `kind` and parameters.

    Raises SpecError or RegistryError, with the dotted key in front of the words.
    """
    if isinstance(data, str):
        data = {"kind": data}
    with blame(where):
        if not isinstance(data, Mapping) or "kind" not in data:
            raise SpecError(f"{where} must name a part by `kind`, got {data!r}")
        name = str(data["kind"])
        try:
            found = registry(base.group).get(name)
        except RegistryError as error:
            raise _with_cure(error, base.group, name=name) from error
        if not issubclass(found, base):
            raise SpecError(f"{where}: {name!r} is not a {base.__name__}")
        # nested parts first and under their own keys: their refusals are located already
        params = found.with_nested({k: v for k, v in data.items() if k != "kind"}, where)
        try:
            return found.from_spec(params)
        except SpecError as error:
            raise located(error, where) from error


def _with_cure(error: PruneoptError, group: str, *, name: str) -> PruneoptError:
    """The refusal of an unknown name, with the part that turns it into what is wanted, where there is one."""
    for other in PACKAGES:
        bridge = f"from_{other.rstrip('s')}"
        if other == group or name not in registry(other) or bridge not in registry(group):
            continue
        slot = next(f.name for f in fields(registry(group).get(bridge)) if "slot" in f.metadata)
        one, wanted = other.rstrip("s"), group.rstrip("s")
        return RegistryError(
            f"{name!r} is a {one}, and here stands a {wanted}: wrap it, "
            f"{{kind: {bridge}, {slot}: {{{name}: {{kind: {name}}}}}}}"
        )
    return error


def build_sum(base: type[Part], data: Any, *, where: str) -> tuple[Weighted, ...]:
    """The summands of a mapping from labels to parts, by label; an entry of None is no summand."""
    if not data:
        return ()
    if not isinstance(data, Mapping):
        raise SpecError(f"{where} must be a mapping from labels to parts, got {data!r}")
    if "kind" in data and not isinstance(data["kind"], Mapping):
        raise SpecError(f"{where} must map labels to parts: {where}.LABEL.kind={data['kind']}")
    out = []
    for label, entry in data.items():
        if entry is not None:  # an override of null removes a summand
            with blame(f"{where}.{label}"):
                out.append(_summand(base, str(label), entry=entry, where=f"{where}.{label}"))
    return tuple(sorted(out, key=lambda s: s.label))


def _summand(base: type[Part], label: str, *, entry: Any, where: str) -> Weighted:
    if not isinstance(entry, (str, Mapping)):
        raise SpecError(f"{where} must name a part by `kind`, got {entry!r}")
    entry = {"kind": entry} if isinstance(entry, str) else dict(entry)
    weight, normalize = entry.pop("weight", 1.0), entry.pop("normalize", "none")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight != weight:
        raise SpecError(f"{where}.weight must be a number, got {weight!r}", key="weight")
    if normalize not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise SpecError(f"{where}.normalize must be one of {known}, got {normalize!r}", key="normalize")
    return Weighted(label, build_part(base, entry, where=where), float(weight), normalize)
