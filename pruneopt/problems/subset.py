"""The optimisation problems that selection is stated as, and the budget that bounds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.brief import Brief, want_tensor
from pruneopt.errors import ProblemError
from pruneopt.problems.values import check_values

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
