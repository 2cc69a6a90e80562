"""Base classes of everything that a spec can name.

A part is a frozen dataclass whose fields are its parameters.  Constructing one stores and range-checks
them, nothing else.  `needs` says which signals it reads; reading another raises.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from pruneopt.errors import SpecError, blame, nearest
from pruneopt.parts._nested import Each, One, Slot, Sum, Weighted
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import SubsetSolution, TransportSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals

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


class CostTerm(Part):
    """A cost: lower is cheaper to keep.

    `__call__(signals)` returns `[B,N,M]` when `shape == "pairwise"` (source token by target token),
    `[B,N]` when `shape == "unary"` (broadcast over targets), or `[B,A,N]` when `shape == "anchor"`
    (external points by token).  float32 or better, finite at real tokens.
    """

    group: ClassVar[str] = "costs"
    shape: ClassVar[str] = "pairwise"

    @property
    def symmetric(self) -> bool:
        """Whether the cost of (i, j) is that of (j, i): the tag, or a property where parameters decide."""
        return "symmetric" in self.tags

    @property
    def negative_type(self) -> bool:
        """Whether `exp(-C / h)` is positive semi-definite for every h: the tag, or as above."""
        return "negative_type" in self.tags

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N M"] | Float[Tensor, "B N"]: ...

    def strength(self, signals: Signals) -> Float[Tensor, "B A"] | None:
        """How strong each external point is, `[B,A]`, for terms of shape `anchor`; None when alike."""
        return None


class Score(Part):
    """An importance `[B,N]`: higher is kept."""

    group: ClassVar[str] = "scores"

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]: ...


class Grouping(Score):
    """The groups of a quota problem: whole numbers `[B,N]` from 0, not a ranking."""

    def shares(
        self,
        group: Int[Tensor, "B N"],
        mask: Bool[Tensor, "B N"],
        *,
        k: Int[Tensor, " B"],
        importance: Float[Tensor, "B N"],
    ) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B G"]] | None:
        """Share the budget over the groups; None shares it in proportion to their size.

        Parameters
        ----------
        group
            The groups of all tokens.
        mask
            True at real tokens.
        k
            Tokens to keep.
        importance
            The scores of the problem, higher is kept.

        Returns
        -------
        tuple of Tensor, or None
            Groups, which may be fewer than before, and their quotas, which sum to `k`.
        """
        return None


class Kernel(Part):
    """A similarity `[B,N,N]`, symmetric, larger is more alike; positive semi-definite if tagged `psd`."""

    group: ClassVar[str] = "kernels"
    symmetric: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N N"]: ...


class Marginal(Part):
    """Non-negative weights `[B,N]` that sum to one over the real tokens of each problem (float32)."""

    group: ClassVar[str] = "marginals"

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]: ...


class Solver(Part):
    """Solves problems of one sort; which sort is said by the two classes below."""

    group: ClassVar[str] = "solvers"


class TransportSolver(Solver):
    """Solves balanced or semi-relaxed transport. Tag `exact` when it returns an optimum."""

    @abstractmethod
    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Return plan and potentials per problem; never raises for non-convergence, see `Status`."""


class SubsetSolver(Solver):
    """Solves the subset problems named in `kinds`. Tag `exact` when it returns an optimum."""

    kinds: ClassVar[frozenset[str]]

    @abstractmethod
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        """Return the choice per problem; never raises for what has no answer, see `Status`."""


class Readout(Part):
    """Turns a transport solution into an importance `[B,N]`: higher is kept."""

    group: ClassVar[str] = "readouts"

    @abstractmethod
    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]: ...

    def ignores_cost(self, solver: Part) -> str | None:
        """Why this readout cannot depend on the cost after `solver`, or None when it can."""
        return None


class Step(Part):
    """Changes a selection after the solver: recover, merge, recycle."""

    group: ClassVar[str] = "steps"

    @abstractmethod
    def __call__(self, selection: Selection, signals: Signals) -> Selection: ...

    def count(self, kept: int, tokens: int) -> int:
        """Count the tokens that are kept after this step.

        Parameters
        ----------
        kept
            Tokens that were kept before it.
        tokens
            Tokens that there are.

        Returns
        -------
        int
            From 0 to `tokens`.
        """
        return kept


class BudgetRule(Part):
    """Changes the counts that a budget asks for: allocation over groups, or a count chosen from scores.

    `__call__(signals, k, importance)` takes the counts `[B]` int64 of the plain budget, one per problem
    (`signals.sample` tells which problems belong together), and the importance `[B,N]` where the problem
    is `top_k`, else None; it returns the counts to use, each from 1 to the tokens of the problem.
    """

    group: ClassVar[str] = "budgets"

    @abstractmethod
    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]: ...


class Insertion(Part):
    """A place in the forward pass where tokens are removed.

    Class attributes: `site` (what carries it out inside a model: a file of `pruneopt/models/sites/`, or one
    that another package registers), `applies` (what a selection may ask for here beside removal: `merge`,
    `reordering`).
    """

    site: ClassVar[str] = "prefill"
    applies: ClassVar[frozenset[str]] = frozenset({"removal", "merge", "reordering"})

    group: ClassVar[str] = "insertions"

    @property
    @abstractmethod
    def layer_index(self) -> int:
        """How many decoder layers have run when tokens are removed: the first that runs without them."""

    @property
    def depth(self) -> tuple[int, int]:
        """Where in the forward pass, to be sorted by: `(0, block)` inside the vision encoder, `(1, layer)` in
        the prompt's pass through the decoder, `(2, layer)` in the cache that it fills.
        """
        return 1, self.layer_index

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """Base names of the signals that exist here."""


__all__ = [
    "BudgetRule", "CostTerm", "Grouping", "Insertion", "Kernel", "Marginal", "Part", "Readout", "Score",
    "Solver", "Step", "SubsetSolver", "TransportSolver", "Weighted", "each_param", "param", "part_param",
    "sum_param",
]  # fmt: skip
