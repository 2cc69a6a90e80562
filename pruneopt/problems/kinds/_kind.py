"""What a kind of subset problem is, and how kinds are found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pruneopt.errors import RegistryError
from pruneopt.problems.kinds._swaps import Recomputed, Swaps, dense_gains
from pruneopt.registry import registry

if TYPE_CHECKING:
    import numpy as np

    from pruneopt.problems.kinds._program import Program
    from pruneopt.problems.subset import SubsetProblem, Terms

GROUPS = ("costs", "kernels")  # what a pairwise term is made of


class Kind(ABC):
    """One kind of subset problem: everything that is known about it stands in its class.

    Required is `value`.  What else a class overrides is what it offers (`offers`): solvers that work for any
    kind ask for that, so a kind that offers `swap_gains` (or `swaps`, which is faster) is improved by swaps,
    and one that offers `linear` or `levels` is solved by integer programming, without an edit to them.

    Class attributes
    ----------------
    name: what `problem.kind` says; the name of the file, or of the entry point in `pruneopt.kinds`.
    needs: terms without which there is no problem: `unary`, `threshold`, `quota` (with `group`).
    pairs: the group of the parts that make its pairwise term, `costs` (larger is farther apart) or `kernels`
        (larger is more alike); empty where it has none.
    symmetric: it knows unordered pairs only, so an asymmetric pairwise term is refused.
    definite: the pairwise term must be positive semi-definite; `ridge` may make it so.
    anchored: `anchors` count as chosen already.
    serves: its targets may be external `anchors` too, or alone; so a spec may give it a `cost`.
    at_most: `k` is a maximum, not an exact number.
    unit: of a loss: `percent` of the optimum, or `nats`.
    scaled: terms that multiply the value (or, in nats, shift it) when they are all multiplied by one number.
    greedy: the solver, as in a spec, whose answer a search starts from; empty where there is none.
    search: the solver, as in a spec, that comes closest to the optimum without proving it; exact solvers
        start from its answer.  Empty where there is none.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    pairs: ClassVar[str] = ""
    symmetric: ClassVar[bool] = False
    definite: ClassVar[bool] = False
    anchored: ClassVar[bool] = False
    serves: ClassVar[bool] = False
    at_most: ClassVar[bool] = False
    unit: ClassVar[str] = "percent"
    scaled: ClassVar[frozenset[str]] = frozenset({"unary", "pairwise", "anchors"})
    greedy: ClassVar[Mapping[str, Any]] = {}
    search: ClassVar[Mapping[str, Any]] = {}

    def offers(self, what: str) -> bool:
        """Whether this kind has its own `what`, a method of `Kind`."""
        return getattr(type(self), what) is not getattr(Kind, what)

    @abstractmethod
    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """Objective `[B]` float64 of the real tokens `keep` `[B,N]`; larger is better, constraints aside."""

    def broken(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """`[B]` bool: the choice breaks a constraint beyond budget, padding and protected tokens."""
        return torch.zeros(keep.shape[0], dtype=torch.bool, device=keep.device)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """Upper bound `[B]` float64 of the optimum, taken around any choice `keep`, or why there is none."""
        return f"no bound of {self.name} is known"

    def bounds(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """The same `[B,N]` for every count: entry k-1 bounds the choices of k tokens.

        Counts that leave out protected tokens or exceed the real ones have no meaning.  Costs N bounds where
        a kind does not know better.
        """
        real, forced = problem.real.sum(1), problem.protected
        least = torch.ones_like(real) if forced is None else forced.sum(1).clamp_min(1)
        every: list[Tensor] = []
        for count in range(1, problem.shape[1] + 1):
            k = torch.full_like(real, count).maximum(least).minimum(real)
            found = self.bound(replace(problem, k=k, counts=None), keep)
            if isinstance(found, str):
                return found
            every.append(found)
        return torch.stack(every, 1)

    def gains(self, problem: SubsetProblem, order: Tensor) -> Tensor:
        """What each token of `order` `[B,K]` adds to those before it, `[B,K]` float64; NaN where order is -1.

        The first entry is what that token is worth alone.  Offered by kinds for which the gains of a greedy
        order never rise, so that one price can spend a budget over several problems.
        """
        raise NotImplementedError

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """Gain `[B,N,N]` float64 of exchanging chosen token i for token j; -inf where that is not allowed.

        Entries for i not chosen or j chosen are meaningless.  A kind that offers `swaps` has them from there.
        """
        if not self.offers("swaps"):
            raise NotImplementedError
        return dense_gains(self.swaps(problem, keep))

    def swaps(self, problem: SubsetProblem, keep: Tensor) -> Swaps:
        """The same for a search: gains that stay current while swaps are made."""
        return Recomputed(problem, keep)

    def value_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """`value` where the pairwise term is `Unstored`; without a better way the whole of it is read."""
        return self.value(problem, keep)

    def bound_by_rows(self, problem: SubsetProblem, keep: Tensor) -> Tensor | str:
        """`bound` where the pairwise term is `Unstored`, from rows."""
        return f"no bound of {self.name} is known that reads the pairwise term by rows"

    def magnitude(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """`[B]` float64 size of the terms that make up the value of `keep`: the unit of relative tolerances.

        The same objective over absolute numbers, so that a sum that cancels is not asked for more digits than
        its terms have.
        """
        terms = {name: getattr(problem, name) for name in ("unary", "pairwise", "anchors")}
        sizes: dict[str, Any] = {name: t.abs() for name, t in terms.items() if t is not None}
        return self.value(replace(problem, **sizes), keep).abs()

    def check(self, problem: SubsetProblem) -> None:  # noqa: B027
        """Raise ProblemError for values that this kind cannot have, beyond what all kinds refuse."""

    def linear(self, problem: SubsetProblem) -> Program:
        """The only sample of `problem` as a mixed-integer linear program."""
        raise NotImplementedError

    def levels(self, problem: SubsetProblem) -> np.ndarray:
        """For kinds whose value is one of few numbers: those of the only sample, rising, float64.

        An optimum that is none of them is the value of every choice.
        """
        raise NotImplementedError

    def reaching(self, problem: SubsetProblem, level: float) -> Program | None:
        """Choices of the only sample worth at least `level`, one of `levels`; None where there is none."""
        raise NotImplementedError

    def close(self, problem: SubsetProblem, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Where a level is reached by avoiding pairs: pairs `[N,N]` to avoid, tokens `[N]` to use; bool."""
        raise NotImplementedError

    def kernel(self, problem: SubsetProblem) -> Tensor:
        """Where the value is a log-determinant: the matrix `[B,N,N]` float64 whose block it is of."""
        raise NotImplementedError

    def draw(self, unit: Tensor, quality: Tensor, *, k: int) -> Terms:
        """A problem of this kind over unit vectors `[B,N,D]` and scores `[B,N]` above 0, for `build`.

        One minus cosine for costs, `(1 + cosine) / 2` for kernels, scores where they are needed.
        """
        terms: Terms = {"unary": quality} if "unary" in self.needs else {}
        if self.pairs:
            cosine = unit @ unit.transpose(1, 2)
            cosine = (cosine + cosine.transpose(1, 2)) / 2
            pairs = (1 - cosine).clamp_min(0) if self.pairs == "costs" else (1 + cosine) / 2
            if self.pairs == "costs":
                pairs.diagonal(dim1=1, dim2=2).zero_()
            terms["pairwise"] = pairs
        return terms


def find_kind(name: str) -> Kind:
    """The kind of a name. Raises RegistryError for an unknown or broken one."""
    found = registry("kinds").get(name)
    if not issubclass(found, Kind):
        raise RegistryError(f"kind {name!r} is no pruneopt.problems.kinds.Kind: {found.__name__}")
    return found()


def all_kinds() -> list[Kind]:
    """Every kind that can be used, by name; a plugin that cannot be loaded hides nothing but itself."""
    found = []
    for name in registry("kinds"):
        try:
            found.append(find_kind(name))
        except RegistryError:  # said by `pruneopt plugins`, and by whoever asks for it
            continue
    return found


class KindsOffering:
    """`kinds` of a solver that works for every kind that offers one of `what` (all kinds without any).

    Looked up when read, so that kinds of plugins are among them.
    """

    def __init__(self, *what: str):
        self.what = what

    def __get__(self, part: object, owner: type | None = None) -> frozenset[str]:
        kinds = all_kinds()
        return frozenset(k.name for k in kinds if not self.what or any(map(k.offers, self.what)))
