"""From the parts that a spec names to the tensors of a problem."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts import BudgetRule, Grouping
from pruneopt.parts._ledger import ledger
from pruneopt.parts._sums import anchor_strength, combine, combine_anchors, combine_rows
from pruneopt.parts.scores.transport import transport_problem as state_transport
from pruneopt.problems import unstored
from pruneopt.problems.row_sums import Raised, Total, averaged
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.problems.unstored import Unstored, matrix_bytes, refuse_large
from pruneopt.signals import Signals
from pruneopt.spec.schema import ProblemSpec, Protect
from pruneopt.tensors import first_true, keep_top, normalize


def subset_problem(
    spec: ProblemSpec,
    signals: Signals,
    *,
    k: Tensor,
    counts: tuple[int, ...] | None = None,
    rule: BudgetRule | None = None,
    rows: bool = False,
    check: bool = True,
) -> SubsetProblem:
    """The subset problem that a spec states on these signals.

    `k` `[B]` tokens are to be chosen, `counts` on the host; a budget rule may change them once the scores are
    known, and only the tensor knows then.  `rows` says that the solver reads rows: then a pairwise term that
    would be too large a matrix is stated by rows.
    """
    unary = combine(spec.scores, signals, pairwise=False)
    state = pairs_by_rows if rows and too_large(signals) else combine_pairs
    pairwise = state(spec, signals)
    outside = (*spec.anchors, *(s for s in spec.cost if s.external))
    anchors = combine_anchors(outside, signals)
    if rule is not None:
        k, counts = rule(signals.view(rule.needs), k, importance=unary), None
    group, quota = quotas(spec, signals, k=k, unary=unary)
    return SubsetProblem.build(
        spec.kind,
        k,
        check=check,
        unary=unary,
        pairwise=pairwise,
        mask=signals.given_mask,
        protected=None if spec.protect is None else protected_tokens(spec.protect, signals, k=k, unary=unary),
        anchors=anchors,
        threshold=spec.threshold,
        group=group,
        quota=quota,
        counts=counts,
        anchor_strength=anchor_strength(outside, signals),
    )


def quotas(
    spec: ProblemSpec, signals: Signals, *, k: Tensor, unary: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Groups `[B,N]` and quotas `[B,G]` of a kind that has them; two times None for the others."""
    named, shared = spec.groups, None
    if named is None:
        return None, None
    group = signals[named] if isinstance(named, str) else named(signals.view(named.needs)).long()
    if isinstance(named, Grouping):
        assert unary is not None
        shared = named.shares(group, signals.mask, k=k, importance=unary)
    return equal_quotas(group, signals.mask, k=k) if shared is None else shared


def combine_pairs(spec: ProblemSpec, signals: Signals) -> Tensor | None:
    """The pairwise term `[B,N,N]` of a subset problem, made symmetric and raised as the spec asks.

    A cost of serving tokens, source by target, becomes what each target gains from each source.  Raises
    ProblemError where the memory cannot hold it.
    """
    if spec.pairwise or any(not s.external for s in spec.cost):
        refuse_large(signals.batch, signals.tokens, device=signals.device)
    pairs = combine(spec.pairwise, signals, pairwise=True)
    if pairs is None:
        cost = combine([s for s in spec.cost if not s.external], signals, pairwise=True)
        return None if cost is None else -cost.transpose(1, 2)
    if spec.symmetric == "mean":
        pairs = (pairs + pairs.transpose(1, 2)) / 2
    if spec.ridge is not None:
        pairs = pairs + spec.ridge * torch.eye(pairs.shape[1], dtype=pairs.dtype, device=pairs.device)
    return pairs


def pairs_by_rows(spec: ProblemSpec, signals: Signals) -> Tensor | None:
    """The same, to be read a few rows at a time."""
    pairs = combine_rows(spec.pairwise, signals)
    if pairs is None:
        cost = combine_rows([s for s in spec.cost if not s.external], signals)
        return None if cost is None else Unstored(Total((cost.turned(),), (-1.0,)))
    if spec.symmetric == "mean":
        pairs = averaged(pairs)
    return Unstored(pairs if spec.ridge is None else Raised(pairs, spec.ridge))


def too_large(signals: Signals) -> bool:
    """Whether a matrix of all pairs would take more than `unstored.WHOLE` bytes."""
    return matrix_bytes(signals.batch, signals.tokens) > unstored.WHOLE


def protected_tokens(protect: Protect, signals: Signals, *, k: Tensor, unary: Tensor | None) -> Tensor:
    """`[B,N]` bool: the best tokens by the scores of `protect`, within the budget `k`.

    Raises ProblemError where `protect.where` names more tokens than the budget holds.
    """
    if protect.where is not None:
        ledger().protects = protect.where
        chosen = (protect.where(signals.view(protect.where.needs)) > 0) & signals.mask
        many = chosen.sum(1) > k
        if many.any():  # waits for the device, but a solver would drop protected tokens without a word
            i = first_true(many)
            raise ProblemError(
                f"problem.protect.where ({protect.where.name}) keeps {int(chosen[i].sum())} tokens of "
                f"problem {i}, but the budget is {int(k[i])}; keep more, or cut again in a second stage"
            )
        return chosen
    score = combine(protect.scores, signals, pairwise=False)
    score = unary if score is None else score
    if score is None:
        raise SpecError("problem.protect ranks by scores, but every score has weight 0")
    if protect.count is not None:
        count = torch.full_like(k, protect.count).minimum(k)
    else:
        assert protect.share is not None
        exact = (k.double() * protect.share * 1e9).round() / 1e9  # 0.29 * 100 must not floor to 28
        rules = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil}
        count = rules[protect.rounding](exact).long()
    return keep_top(score, count, mask=signals.mask)


def equal_quotas(group: Tensor, mask: Tensor, *, k: Tensor) -> tuple[Tensor, Tensor]:
    """Share `k[b]` over groups in proportion to their size: largest remainder, ties to the lower group."""
    hot = torch.nn.functional.one_hot(group.clamp_min(0)) * mask[:, :, None]
    size = hot.sum(1).double()
    exact = size / size.sum(1, keepdim=True) * k[:, None]
    base = exact.floor().long()
    left = k - base.sum(1)
    ranked = (exact - base).argsort(dim=1, descending=True, stable=True)
    extra = torch.zeros_like(base)
    extra.scatter_(1, ranked, (torch.arange(hot.shape[2], device=k.device) < left[:, None]).long())
    return group, base + extra


def transport_problem(spec: ProblemSpec, signals: Signals, *, check: bool = True) -> TransportProblem:
    """The transport problem that a spec states on these signals."""
    assert spec.source is not None and spec.target is not None
    return state_transport(spec.cost, signals, source=spec.source, target=spec.target, check=check)


__all__ = [
    "anchor_strength", "combine", "combine_anchors", "combine_pairs", "equal_quotas", "keep_top", "normalize",
    "protected_tokens", "quotas", "subset_problem", "transport_problem",
]  # fmt: skip
