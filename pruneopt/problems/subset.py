"""The subset problem: choose tokens so that an objective is largest."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Bool
from torch import Tensor

from pruneopt.brief import Brief, want_tensor
from pruneopt.errors import ProblemError
from pruneopt.problems.kinds import Kind, all_kinds, find_kind
from pruneopt.problems.unstored import Unstored
from pruneopt.problems.values import check_values
from pruneopt.registry import registry


class Terms(TypedDict, total=False):
    """What a subset problem is stated with; the fields of `SubsetProblem` say what each is."""

    unary: Tensor | None
    pairwise: Tensor | None
    mask: Tensor | None
    protected: Tensor | None
    anchors: Tensor | None
    threshold: float | None
    group: Tensor | None
    quota: Tensor | None
    counts: tuple[int, ...] | None
    anchor_strength: Tensor | None


_MISSING = {
    "unary": "scores [B,N]",
    "threshold": "a conflict threshold, got {}",
    "quota": "group [B,N] and quota [B,G]",
}
_FLOATS = ("unary", "pairwise", "anchors")
_TENSORS = (*_FLOATS, "mask", "protected", "group", "quota", "anchor_strength")


@dataclass(frozen=True, eq=False, repr=False)
class SubsetProblem(Brief):
    """Choose `k[b]` of the real tokens of every sample so that an objective is largest.

    The objective is that of the kind, a file in `problems/kinds` or of a plugin (`pruneopt list kinds`): its
    class says what it maximises, which terms it needs, and what is known of its optimum.  Always maximised.

    Parameters
    ----------
    kind
        Its name.
    k
        `[B]` int64, number to choose (a maximum for kinds with `at_most`).
    unary
        `[B,N]` scores.
    pairwise
        `[B,N,N]`; for kinds of unordered pairs symmetric up to 1e-5 of its largest entry (four roundings in
        half precision); for kinds that ask for it positive semi-definite up to N roundings of its largest
        entry (of float32, or of the half precision it came in).  An `Unstored` term is read by rows
        (`pruneopt.problems.rows`), and its construction says both.
    mask
        `[B,N]` bool, True at real tokens.
    protected
        `[B,N]` bool, real tokens that must be chosen (counted in k).
    anchors
        `[B,A,N]` distances from A external points, such as text tokens, that count as chosen already, and
        steer pivot rules; for kinds that serve targets what it costs to serve them.  A row of +inf is an
        absent anchor, so that ragged texts can share a batch.
    threshold
        Conflict bound.
    group, quota
        `[B,N]` and `[B,G]` int64.
    counts
        `k` as host numbers where they are known, so that solvers need not wait for the device.
    anchor_strength
        `[B,A]` how strong each anchor is, for rules that visit strong ones first.
    """

    # Shapes stand in words: `build` makes one of these of whatever it is given, and refuses by name.

    kind: str
    k: Tensor
    _: KW_ONLY
    unary: Tensor | None = None
    pairwise: Tensor | None = None
    mask: Tensor | None = None
    protected: Tensor | None = None
    anchors: Tensor | None = None
    threshold: float | None = None
    group: Tensor | None = None
    quota: Tensor | None = None
    counts: tuple[int, ...] | None = None
    anchor_strength: Tensor | None = None

    @staticmethod
    def build(kind: str, k: Tensor | int, *, check: bool = True, **terms: Unpack[Terms]) -> SubsetProblem:
        """Validate shapes and values; half precision is promoted to float32.

        Parameters
        ----------
        kind
            A name of `pruneopt list kinds`.
        k
            Number to choose, one for all samples or `[B]`.
        check
            Look at values too, which waits for a GPU; shapes are always checked.
        **terms
            The other fields of the class.

        Returns
        -------
        SubsetProblem
            What solvers take.

        Raises
        ------
        ProblemError
            Naming the argument, the sample and the cure.
        """
        if kind not in registry("kinds"):
            known = ", ".join(registry("kinds"))
            raise ProblemError(f"unknown subset problem {kind!r}; known: {known}")
        for name in _TENSORS:
            want_tensor(name, terms.get(name), error=ProblemError)
        pairwise = terms.get("pairwise")
        came = None if pairwise is None else pairwise.dtype
        found = {name: _promote(terms.get(name)) for name in _FLOATS}  # type: ignore[arg-type]
        lead = next((t for t in found.values() if t is not None), None)
        if isinstance(k, int) and lead is not None:
            terms["counts"] = (k,) * lead.shape[0]
            k = torch.full((lead.shape[0],), k, dtype=torch.int64, device=lead.device)
        terms.update(found)  # type: ignore[typeddict-item]
        problem = SubsetProblem(kind, k, **terms)  # type: ignore[arg-type]
        _check_terms(problem)
        _check_shapes(problem)
        _check_dtypes(problem)
        if check:
            check_values(problem, 0.0 if came is None else torch.finfo(came).eps)
        return problem

    @cached_property
    def rules(self) -> Kind:
        """The kind behind the name: its objective, and what is known of it."""
        return find_kind(self.kind)

    @property
    def most(self) -> int:
        """Largest `k` of the batch; waits for the device only when `counts` is unknown."""
        return max(self.counts) if self.counts is not None else int(self.k.max())

    @cached_property
    def shape(self) -> tuple[int, int]:
        """`(B, N)`."""
        lead = self.unary if self.unary is not None else self.pairwise
        if lead is None and self.anchors is not None:
            return self.anchors.shape[0], self.anchors.shape[-1]
        assert lead is not None
        return lead.shape[0], lead.shape[1]

    @cached_property
    def real(self) -> Bool[Tensor, "B N"]:
        """`[B,N]` bool mask of real tokens, never None."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.shape, dtype=torch.bool, device=self.k.device)

    def sample(self, number: int) -> SubsetProblem:
        """The same problem with one sample."""
        one: dict[str, Any] = {name: t[number : number + 1] for name, t in self._tensors()}
        return replace(self, **one, counts=(int(self.k[number]),))

    def repeated(self, times: int) -> SubsetProblem:
        """A problem of one sample, that many times; views, no copies."""
        many: dict[str, Any] = {name: t.expand(times, *t.shape[1:]) for name, t in self._tensors()}
        return replace(self, **many, counts=None)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """The tensors it is stated with, by name."""
        stated = ((name, getattr(self, name)) for name in ("k", *_TENSORS))
        return [(name, t) for name, t in stated if t is not None]

    def value(self, keep: Tensor) -> Tensor:
        """Objective `[B]` float64 of the choice `keep` `[B,N]` bool; larger is better.

        -inf where the choice breaks a constraint.  Raises ProblemError for another shape or dtype.
        """
        if keep.shape != self.shape or keep.dtype != torch.bool:
            raise ProblemError(f"keep must be bool {list(self.shape)}, got {keep.dtype} {list(keep.shape)}")
        read = self.rules.value_by_rows if isinstance(self.pairwise, Unstored) else self.rules.value
        return read(self, keep & self.real).masked_fill(self.broken(keep), -math.inf)

    def broken(self, keep: Tensor) -> Tensor:
        """`[B]` bool: the choice breaks budget, padding, a protected token, or a constraint of the kind."""
        size, rules = keep.sum(1), self.rules
        wrong = (keep & ~self.real).any(1) | ((size > self.k) if rules.at_most else (size != self.k))
        if self.protected is not None:
            wrong |= (self.protected & ~keep).any(1)
        return wrong | rules.broken(self, keep)

    def magnitude(self, keep: Tensor) -> Tensor:
        """`[B]` float64 size of the terms that make up the value of `keep`: the unit of tolerances."""
        return self.rules.magnitude(self, keep & self.real)

    def bound(self, keep: Tensor) -> tuple[Tensor | None, str]:
        """Bound `[B]` float64 of the optimum, taken around any choice `keep`; or the reason for none."""
        read = self.rules.bound_by_rows if isinstance(self.pairwise, Unstored) else self.rules.bound
        found = read(self, keep)
        return (None, found) if isinstance(found, str) else (found, "")


def _check_terms(given: SubsetProblem) -> None:
    """Refuse a problem that lacks what its kind needs, or has anchors that mean nothing to it."""
    rules = given.rules
    if all(term is None for term in (given.unary, given.pairwise, given.anchors)):
        raise ProblemError(f"{given.kind} needs scores (unary) or a pairwise matrix; neither was given")
    if rules.pairs and given.pairwise is None and not (rules.serves and given.anchors is not None):
        raise ProblemError(f"{given.kind} needs a pairwise matrix [B,N,N]; give it a cost or a kernel")
    for name in sorted(rules.needs, key=list(_MISSING).index):
        value = getattr(given, name)
        void = value is None or (isinstance(value, float) and math.isnan(value))
        if void or (name == "quota" and given.group is None):
            raise ProblemError(f"{given.kind} needs {_MISSING[name].format(value)}")
    if given.anchors is not None and not (rules.anchored or rules.serves):
        takers = ", ".join(kind.name for kind in all_kinds() if kind.anchored)
        raise ProblemError(f"anchors have no meaning for {given.kind}; they count as chosen in {takers}")


def _check_shapes(given: SubsetProblem) -> None:
    batch, tokens = given.shape
    k, anchors, quota = given.k, given.anchors, given.quota
    for name, shape in (
        ("unary", (batch, tokens)),
        ("pairwise", (batch, tokens, tokens)),
        ("mask", (batch, tokens)),
        ("protected", (batch, tokens)),
        ("group", (batch, tokens)),
        ("anchor_strength", (batch, 0 if anchors is None else anchors.shape[1])),
    ):
        tensor = getattr(given, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ProblemError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if anchors is not None and (anchors.dim() != 3 or anchors.shape[::2] != (batch, tokens)):
        raise ProblemError(f"anchors must have shape [{batch}, A, {tokens}], got {list(anchors.shape)}")
    if quota is not None and (quota.dim() != 2 or quota.shape[0] != batch):
        raise ProblemError(f"quota must have shape [{batch}, G], got {list(quota.shape)}")
    if tuple(k.shape) != (batch,) or k.is_floating_point():
        raise ProblemError(f"k must be whole numbers of shape [{batch}], got {k.dtype} {list(k.shape)}")


def _check_dtypes(given: SubsetProblem) -> None:
    for name in _FLOATS:
        tensor = getattr(given, name)
        if tensor is not None and not tensor.is_floating_point():
            raise ProblemError(f"{name} must be floating point, got {tensor.dtype}")
    for name, dtype in (
        ("mask", torch.bool),
        ("protected", torch.bool),
        ("group", torch.int64),
        ("quota", torch.int64),
    ):
        tensor = getattr(given, name)
        if tensor is not None and tensor.dtype != dtype:
            raise ProblemError(f"{name} must be {dtype}, got {tensor.dtype}")


def _promote(tensor: Tensor | None) -> Tensor | None:
    if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor
