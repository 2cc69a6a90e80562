"""From the parts that a spec names to the tensors of a problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruneopt.errors import ProblemError, SignalError, SpecError
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals
from pruneopt.spec.schema import ProblemSpec, Protect, Weighted
from pruneopt.tensors import keep_top


def normalize(values: Tensor, how: str, mask: Tensor) -> Tensor:
    """Scale `[B,N]` or `[B,N,M]` per problem over its real entries; constant input becomes zeros.

    `minmax` to [0,1]; `sum` to a sum of one; `max` to a largest magnitude of one; `zscore` to mean 0 and
    deviation 1; `l2` to unit Euclidean length; `softmax` to a softmax over the real entries.
    """
    if how == "none":
        return values
    dims = tuple(range(1, values.dim()))
    if values.dim() == 3:
        mask = mask[:, :, None] & mask[:, None, :] if values.shape[1] == values.shape[2] else mask[:, :, None]
        mask = mask.expand(values.shape)
    if how == "softmax":
        flat = values.masked_fill(~mask, -torch.inf).flatten(1).softmax(1)
        return flat.view_as(values).nan_to_num()  # a sample without real entries: 0
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    clean = values.masked_fill(~mask, 0)
    shift: Tensor | float = 0.0
    if how == "sum":
        scale = clean.sum(dims, keepdim=True)
    elif how == "max":
        scale = clean.abs().amax(dims, keepdim=True)
    elif how == "l2":
        scale = clean.pow(2).sum(dims, keepdim=True).sqrt()
    elif how == "zscore":
        shift = clean.sum(dims, keepdim=True) / count
        scale = ((clean - shift).masked_fill(~mask, 0).pow(2).sum(dims, keepdim=True) / count).sqrt()
    else:
        shift = values.masked_fill(~mask, torch.inf).amin(dims, keepdim=True)
        scale = values.masked_fill(~mask, -torch.inf).amax(dims, keepdim=True) - shift
    return torch.where(scale != 0, (values - shift) / torch.where(scale != 0, scale, 1), 0.0)


def combine(summands: Sequence[Weighted], signals: Signals, pairwise: bool) -> Tensor | None:
    """Weighted sum of parts, `[B,N]`, or `[B,N,M]` with unary cost terms broadcast over targets.

    A weight of zero removes its summand exactly: the part is not even called.
    """
    total: Tensor | None = None
    for summand in summands:
        if summand.weight == 0:
            continue
        out = summand.part(signals.view(summand.part.needs))  # type: ignore[operator]
        wanted = 3 if pairwise and getattr(summand.part, "shape", "pairwise") == "pairwise" else 2
        if out.dim() != wanted or out.shape[:2] != (signals.batch, signals.tokens):
            raise SignalError(
                f"{summand.part.name} returned shape {list(out.shape)} for B={signals.batch}, "
                f"N={signals.tokens}"
            )
        out = normalize(out.float() if out.dtype.itemsize < 4 else out, summand.normalize, signals.mask)
        out = out[:, :, None] if pairwise and out.dim() == 2 else out
        out = out if summand.weight == 1 else out * summand.weight
        total = out if total is None else total + out
    if total is not None and pairwise and total.shape[2] == 1:
        total = total.expand(-1, -1, signals.tokens)
    return total


def combine_pairs(spec: ProblemSpec, signals: Signals) -> Tensor | None:
    """The pairwise term `[B,N,N]` of a subset problem, made symmetric and raised as the spec asks."""
    pairs = combine(spec.pairwise, signals, pairwise=True)
    if pairs is None:
        return None
    if spec.symmetric == "mean":
        pairs = (pairs + pairs.transpose(1, 2)) / 2
    if spec.ridge is not None:
        pairs = pairs + spec.ridge * torch.eye(pairs.shape[1], dtype=pairs.dtype, device=pairs.device)
    return pairs


def combine_anchors(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """Anchor rows of all summands stacked: `[B,A,N]`, weights applied."""
    rows = [s.part(signals.view(s.part.needs)).float() * s.weight for s in summands]  # type: ignore[operator]
    return torch.cat(rows, 1) if rows else None


def anchor_strength(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """How strong each stacked anchor is, `[B,A]`, where every summand says so; else None."""
    rows = [s.part.strength(signals.view(s.part.needs)) for s in summands]  # type: ignore[attr-defined]
    known = [row for row in rows if row is not None]
    return torch.cat(known, 1) if known and len(known) == len(rows) else None


def protected_tokens(protect: Protect, signals: Signals, k: Tensor, unary: Tensor | None) -> Tensor:
    """`[B,N]` bool: the best tokens by the scores of `protect`, within the budget `k`.

    Raises ProblemError where `protect.where` names more tokens than the budget holds.
    """
    if protect.where is not None:
        chosen = (protect.where(signals.view(protect.where.needs)) > 0) & signals.mask
        many = chosen.sum(1) > k
        if many.any():  # waits for the device, but a solver would drop protected tokens without a word
            i = int(many.nonzero()[0, 0])
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
    return keep_top(score, count, signals.mask)


def equal_quotas(group: Tensor, mask: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
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


def transport_problem(
    spec: ProblemSpec, signals: Signals, mask: Tensor | None = None, check: bool = True
) -> TransportProblem:
    """The transport problem that a spec states on these signals."""
    cost = combine(spec.cost, signals, pairwise=True)
    if cost is None:
        raise SpecError("every cost term has weight 0; give at least one a weight")
    assert spec.source is not None and spec.target is not None
    a = spec.source(signals.view(spec.source.needs))  # type: ignore[operator]
    b = spec.target(signals.view(spec.target.needs))  # type: ignore[operator]
    return TransportProblem.build(cost, a, b, mask, mask, check=check)
