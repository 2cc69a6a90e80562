"""The optimisation problems that selection is stated as, and the budget that bounds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.brief import Brief, want_tensor
from pruneopt.errors import ProblemError, SpecError
from pruneopt.subset_values import check_values

SUBSET_KINDS = (
    "top_k",
    "max_min",
    "max_sum",
    "facility_location",
    "log_det",
    "independent_set",
    "quota",
)
SYMMETRIC_KINDS = ("max_min", "max_sum", "log_det", "independent_set")  # of unordered pairs of tokens
ANCHORED_KINDS = ("max_min", "max_sum")


@dataclass(frozen=True, eq=False, repr=False)
class TransportProblem(Brief):
    """Move mass `a` onto mass `b` at least cost, one problem per batch entry.

    Parameters
    ----------
    cost: `[B,N,M]` floating point; lower is cheaper; finite wherever both masks are True.
    a, b: `[B,N]` and `[B,M]`, non-negative, each summing to one per problem; zero where masked.
    row_mask, col_mask: bool, True at real rows and columns; None means all real.

    Raises ProblemError naming the argument and the sample for wrong shapes, non-finite or negative entries,
    a sample whose rows or columns are all masked, a range that overflows, and masses that do not sum to one
    within 1e-4 (they are renormalised in float64 below that).
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    row_mask: Tensor | None = None
    col_mask: Tensor | None = None

    @staticmethod
    def build(
        cost: Tensor,
        a: Tensor | None = None,
        b: Tensor | None = None,
        row_mask: Tensor | None = None,
        col_mask: Tensor | None = None,
        check: bool = True,
    ) -> TransportProblem:
        """Validate, promote to at least float32, and fill in uniform marginals.

        `check=False` skips the value checks that would wait for a GPU; shapes are always checked.
        """
        given = {"cost": cost, "a": a, "b": b, "row_mask": row_mask, "col_mask": col_mask}
        for name, value in given.items():
            want_tensor(name, value, ProblemError)
        if cost.dim() == 2:
            raise ProblemError("cost has shape [N,M]; add a batch axis: cost[None]")
        if cost.dim() != 3 or not cost.is_floating_point():
            raise ProblemError(f"cost must be floating point [B,N,M], got {cost.dtype} {list(cost.shape)}")
        if 0 in cost.shape:
            raise ProblemError(f"cost is empty: shape {list(cost.shape)}")
        if cost.dtype in (torch.float16, torch.bfloat16):
            cost = cost.float()
        batch, rows, cols = cost.shape
        row_mask = _mask("row_mask", row_mask, (batch, rows), cost)
        col_mask = _mask("col_mask", col_mask, (batch, cols), cost)
        if check:
            _some_real(row_mask, "row")
            _some_real(col_mask, "col")
        a = _mass("a", a, row_mask, (batch, rows), cost, check)
        b = _mass("b", b, col_mask, (batch, cols), cost, check)
        if row_mask is not None or col_mask is not None:
            real = torch.ones(batch, rows, cols, dtype=torch.bool, device=cost.device)
            real = real if row_mask is None else real & row_mask[:, :, None]
            real = real if col_mask is None else real & col_mask[:, None, :]
            cost = cost.masked_fill(~real, 0.0)
        if check:
            bad = (~cost.isfinite()).flatten(1).any(1)
            if bad.any():
                raise ProblemError(
                    f"cost is not finite in problem {_first(bad)}; look for NaN or infinity in the "
                    "signals, or mask forbidden pairs with a finite cost"
                )
        problem = TransportProblem(cost, a, b, row_mask, col_mask)
        if check:
            bad = ~problem.cost_range().isfinite()
            if bad.any():
                raise ProblemError(
                    f"cost spans more than {cost.dtype} holds in problem {_first(bad)}: highest minus lowest "
                    "overflows; give forbidden pairs a cost of about 10 times the range of the others"
                )
        return problem

    @property
    def pair_mask(self) -> Tensor | None:
        """`[B,N,M]` bool, True where both sides are real; None when nothing is masked."""
        if self.row_mask is None and self.col_mask is None:
            return None
        mask = torch.ones(self.cost.shape, dtype=torch.bool, device=self.cost.device)
        if self.row_mask is not None:
            mask = mask & self.row_mask[:, :, None]
        if self.col_mask is not None:
            mask = mask & self.col_mask[:, None, :]
        return mask

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """`cost`, `a`, `b`: what a gradient can be taken in."""
        return self.cost, self.a, self.b

    def detached(self) -> TransportProblem:
        """The same problem out of the sight of autograd; views, no copies."""
        cost, a, b = (x.detach() for x in self.inputs)
        return TransportProblem(cost, a, b, self.row_mask, self.col_mask)

    def span(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest real cost, `[B]` each."""
        mask, cost = self.pair_mask, self.cost
        if mask is None:
            return cost.amin((1, 2)), cost.amax((1, 2))  # aminmax over a dim is 15 times slower on a CPU
        low, high = cost.masked_fill(~mask, math.inf), cost.masked_fill(~mask, -math.inf)
        return low.amin((1, 2)), high.amax((1, 2))

    def cost_range(self) -> Tensor:
        """`[B]`: largest minus smallest real cost; 1 where the cost is constant."""
        low, high = self.span()
        width = high - low
        return torch.where(width > 0, width, torch.ones_like(width))


def _some_real(mask: Tensor | None, side: str) -> None:
    if mask is not None and not bool(mask.any(1).all()):
        raise ProblemError(
            f"{side}_mask is False everywhere in problem {_first(~mask.any(1))}: there is nothing to move; "
            "leave such samples out of the batch"
        )


def _first(bad: Tensor) -> int:
    return int(bad.nonzero()[0, 0])


def _mask(name: str, mask: Tensor | None, shape: tuple[int, int], cost: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ProblemError(f"{name} must be bool {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    return mask.to(cost.device)


def _mass(
    name: str, mass: Tensor | None, mask: Tensor | None, shape: tuple[int, int], cost: Tensor, check: bool
) -> Tensor:
    if mass is None:
        mass = torch.ones(shape, dtype=torch.float64, device=cost.device)
    elif tuple(mass.shape) != shape:
        raise ProblemError(f"{name} must have shape {list(shape)}, got {list(mass.shape)}")
    elif not mass.is_floating_point():
        raise ProblemError(f"{name} must be floating point, got {mass.dtype}")
    elif check:
        bad = ~(mass.isfinite() & (mass >= 0)).all(1)
        if bad.any():
            raise ProblemError(f"{name} has a negative or non-finite entry in problem {_first(bad)}")
        real = mass if mask is None else mass * mask
        total = real.double().sum(1)
        off = (total - 1).abs() > 1e-3 if mass.dtype.itemsize < 4 else (total - 1).abs() > 1e-4
        if off.any():
            i = _first(off)
            raise ProblemError(
                f"{name} sums to {float(total[i]):.6g} in problem {i}, not to 1; divide it by its sum"
            )
    mass = mass.double()
    if mask is not None:
        mass = mass * mask
    total = mass.sum(1, keepdim=True)
    return (mass / total).to(cost.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class SubsetProblem(Brief):
    """Choose `k[b]` of the real tokens of every sample so that an objective is largest.

    Objectives over a chosen set S (always maximised):

    - `top_k`: sum of `unary`;
    - `max_min`: smallest `pairwise` distance within S;
    - `max_sum`: sum of `pairwise` distances over unordered pairs of S, plus `unary` of S if given;
    - `facility_location`: sum over all tokens of their largest `pairwise` similarity to S, each token
      weighted by `unary` if given;
    - `log_det`: log-determinant of `diag(q) L diag(q)` restricted to S, `L = pairwise` symmetric positive
      semi-definite and `q = unary` (ones when None);
    - `independent_set`: sum of `unary` over S of at most k tokens, no two with `pairwise > threshold`;
    - `quota`: sum of `unary` with `quota[b,g]` tokens from every group `group[b,n] == g`.

    Parameters
    ----------
    k: `[B]` int64, number to choose (a maximum for `independent_set`).
    unary: `[B,N]`; mask: `[B,N]` bool, True at real tokens.
    pairwise: `[B,N,N]`, symmetric up to 1e-5 of its largest entry (four roundings in half precision) in all
        kinds of unordered pairs, that is all but `facility_location`, where entry (n, s) is what n gains when
        s is chosen.  For `log_det` positive semi-definite up to N roundings of its largest entry (of float32,
        or of the half precision it came in).
    protected: `[B,N]` bool, real tokens that must be chosen (counted in k).
    anchors: `[B,A,N]` distances from A external points, such as text tokens, that count as chosen already in
        `max_min` and `max_sum` and steer pivot rules.  A row of +inf is an absent anchor, so that ragged
        texts can share a batch.
    threshold: conflict bound of `independent_set`.  group, quota: `[B,N]` and `[B,G]` int64 for `quota`.
    counts: `k` as host numbers where they are known, so that solvers need not wait for the device.
    anchor_strength: `[B,A]` how strong each anchor is, for rules that visit strong ones first; optional.
    """

    kind: str
    k: Tensor
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
    def build(
        kind: str,
        k: Tensor | int,
        unary: Tensor | None = None,
        pairwise: Tensor | None = None,
        mask: Tensor | None = None,
        protected: Tensor | None = None,
        anchors: Tensor | None = None,
        threshold: float | None = None,
        group: Tensor | None = None,
        quota: Tensor | None = None,
        check: bool = True,
        counts: tuple[int, ...] | None = None,
        anchor_strength: Tensor | None = None,
    ) -> SubsetProblem:
        """Validate shapes and (with `check`) values; half precision is promoted to float32.

        `check=False` skips what would wait for a GPU.  Raises ProblemError naming the argument, the sample
        and the cure.
        """
        if kind not in SUBSET_KINDS:
            raise ProblemError(f"unknown subset problem {kind!r}; known: {', '.join(SUBSET_KINDS)}")
        given = {"unary": unary, "pairwise": pairwise, "mask": mask, "protected": protected}
        given |= {"anchors": anchors, "group": group, "quota": quota, "anchor_strength": anchor_strength}
        for name, value in given.items():
            want_tensor(name, value, ProblemError)
        lead = unary if unary is not None else pairwise
        if lead is None:
            raise ProblemError(f"{kind} needs scores (unary) or a pairwise matrix; neither was given")
        batch, tokens = lead.shape[:2]
        needs_pairwise = kind in ("max_min", "max_sum", "facility_location", "log_det", "independent_set")
        if needs_pairwise and pairwise is None:
            raise ProblemError(f"{kind} needs a pairwise matrix [B,N,N]; give it a cost or a kernel")
        if kind in ("top_k", "independent_set", "quota") and unary is None:
            raise ProblemError(f"{kind} needs scores [B,N]")
        if kind == "independent_set" and (threshold is None or math.isnan(threshold)):
            raise ProblemError(f"independent_set needs a conflict threshold, got {threshold}")
        if anchors is not None and kind not in ANCHORED_KINDS:
            raise ProblemError(
                f"anchors have no meaning for {kind}; they count as chosen in max_min, max_sum"
            )
        if kind == "quota" and (group is None or quota is None):
            raise ProblemError("quota needs group [B,N] and quota [B,G]")
        for name, tensor, shape in (
            ("unary", unary, (batch, tokens)),
            ("pairwise", pairwise, (batch, tokens, tokens)),
            ("mask", mask, (batch, tokens)),
            ("protected", protected, (batch, tokens)),
            ("group", group, (batch, tokens)),
            ("anchor_strength", anchor_strength, (batch, 0 if anchors is None else anchors.shape[1])),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ProblemError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if anchors is not None and (anchors.dim() != 3 or anchors.shape[::2] != (batch, tokens)):
            raise ProblemError(f"anchors must have shape [{batch}, A, {tokens}], got {list(anchors.shape)}")
        if quota is not None and (quota.dim() != 2 or quota.shape[0] != batch):
            raise ProblemError(f"quota must have shape [{batch}, G], got {list(quota.shape)}")
        for name, tensor in (("unary", unary), ("pairwise", pairwise), ("anchors", anchors)):
            if tensor is not None and not tensor.is_floating_point():
                raise ProblemError(f"{name} must be floating point, got {tensor.dtype}")
        for name, tensor, dtype in (
            ("mask", mask, torch.bool),
            ("protected", protected, torch.bool),
            ("group", group, torch.int64),
            ("quota", quota, torch.int64),
        ):
            if tensor is not None and tensor.dtype != dtype:
                raise ProblemError(f"{name} must be {dtype}, got {tensor.dtype}")
        rounding = 0.0 if pairwise is None else torch.finfo(pairwise.dtype).eps
        unary, pairwise, anchors = _promote(unary), _promote(pairwise), _promote(anchors)
        if isinstance(k, int):
            counts = (k,) * batch
            k = torch.full((batch,), k, dtype=torch.int64, device=lead.device)
        if tuple(k.shape) != (batch,) or k.is_floating_point():
            raise ProblemError(f"k must be whole numbers of shape [{batch}], got {k.dtype} {list(k.shape)}")
        problem = SubsetProblem(
            kind, k, unary, pairwise, mask, protected, anchors, threshold, group, quota, counts,
            anchor_strength,
        )  # fmt: skip
        if check:
            check_values(problem, rounding)
        return problem

    @property
    def symmetric(self) -> bool:
        """Whether this kind knows unordered pairs only."""
        return self.kind in SYMMETRIC_KINDS

    @property
    def most(self) -> int:
        """Largest `k` of the batch; waits for the device only when `counts` is unknown."""
        return max(self.counts) if self.counts is not None else int(self.k.max())

    @property
    def shape(self) -> tuple[int, int]:
        """`(B, N)`."""
        lead = self.unary if self.unary is not None else self.pairwise
        assert lead is not None
        return lead.shape[0], lead.shape[1]

    @property
    def real(self) -> Tensor:
        """`[B,N]` bool mask of real tokens, never None."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.shape, dtype=torch.bool, device=self.k.device)


def _promote(tensor: Tensor | None) -> Tensor | None:
    if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


@dataclass(frozen=True)
class Budget:
    """How many tokens stay.

    `keep` at most 1 is a ratio of what was there at the start (1 keeps all); a whole number above 1 is a
    count.  `rounding` turns ratio times tokens into a count; a ratio never keeps fewer than one token.
    `scope` says whether the ratio or count holds per `group` (image, crop, frame) or per `sample`.
    `total`: the count includes what later steps add (recovered or merged tokens).
    `relative_to`: `start` (the tokens of the unpruned prompt) or `current` (those still alive).
    """

    keep: float | int = 0.5
    rounding: str = "round"
    scope: str = "group"
    total: bool = False
    relative_to: str = "start"

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise SpecError(f"budget.keep must be a ratio or a count, got {self.keep!r}", key="keep")
        keep = float(self.keep)
        if not keep > 0 or math.isinf(keep):
            raise SpecError(
                f"budget.keep must be above 0 (a ratio up to 1, or a count of tokens), got {self.keep}",
                key="keep",
            )
        if keep > 1 and keep != int(keep):
            raise SpecError(
                f"budget.keep above 1 must be a whole count of tokens, got {self.keep}; ratios end at 1",
                key="keep",
            )
        for name, value, known in (
            ("rounding", self.rounding, ("round", "floor", "ceil")),
            ("scope", self.scope, ("group", "sample")),
            ("relative_to", self.relative_to, ("start", "current")),
        ):
            if value not in known:
                raise SpecError(f"budget.{name} must be one of {', '.join(known)}, got {value!r}", key=name)

    def count(self, start: int, alive: int) -> int:
        """Tokens to keep of `alive`, when the unpruned prompt had `start`.

        Raises ProblemError when a count exceeds what is alive.  Half-way cases round to even.
        """
        base = start if self.relative_to == "start" else alive
        if float(self.keep) > 1:
            wanted = int(self.keep)
        else:
            exact = round(float(self.keep) * base, 9)  # 0.29 * 100 must not floor to 28
            rules: dict[str, Callable[[float], int]] = {
                "round": round,
                "floor": math.floor,
                "ceil": math.ceil,
            }
            wanted = max(1, rules[self.rounding](exact))
        if wanted > alive:
            raise ProblemError(
                f"budget.keep={self.keep} asks for {wanted} tokens where only {alive} are left; "
                "lower it or give a ratio"
            )
        return wanted

    def to_spec(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "rounding": self.rounding,
            "scope": self.scope,
            "total": self.total,
            "relative_to": self.relative_to,
        }
