"""A resolved stage made runnable: signals in, selection out.  No model is involved."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.errors import CostBlindReadoutWarning, SignalError, SpecError
from pruneopt.parts import CostTerm, Score, SubsetSolver, TransportSolver
from pruneopt.problems import SubsetProblem, TransportProblem
from pruneopt.signals import Signals, signal_info
from pruneopt.solution import Selection, Solution
from pruneopt.spec import ProblemSpec, Protect, Spec, StageSpec, Weighted, load_spec


@dataclass
class Clock:
    """Host seconds per named step; with `sync` each boundary waits for the device (benchmarks only)."""

    sync: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self.sync is not None:
            self.sync()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


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
        return flat.view_as(values).nan_to_num(0.0)
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    clean = values.masked_fill(~mask, 0)
    if how == "sum":
        scale, shift = clean.sum(dims, keepdim=True), torch.zeros_like(count, dtype=values.dtype)
    elif how == "max":
        scale, shift = clean.abs().amax(dims, keepdim=True), torch.zeros_like(count, dtype=values.dtype)
    elif how == "l2":
        scale = clean.pow(2).sum(dims, keepdim=True).sqrt()
        shift = torch.zeros_like(scale)
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


def combine_anchors(summands: Sequence[Weighted], signals: Signals) -> Tensor | None:
    """Anchor rows of all summands stacked: `[B,A,N]`, weights applied."""
    rows = [s.part(signals.view(s.part.needs)).float() * s.weight for s in summands]  # type: ignore[operator]
    return torch.cat(rows, 1) if rows else None


def keep_top(importance: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """`[B,N]` bool: the `k[b]` largest real entries of each row, ties to the lower index."""
    ranked = importance.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(ranked)
    place.scatter_(1, ranked, torch.arange(ranked.shape[1], device=k.device).expand_as(ranked))
    return (place < k[:, None]) & mask


def split_groups(signals: Signals) -> tuple[Signals, Tensor]:
    """One problem per image, crop or frame: samples are split by the `group` signal.

    Returns the new signals and `[G,N']` int64 places of their tokens in the sample, -1 at padding.
    """
    group = signals["group"].masked_fill(~signals.mask, -1)
    places: list[Tensor] = []
    owners: list[int] = []
    for sample, row in enumerate(group):
        for number in row[row >= 0].unique(sorted=True).tolist():
            places.append((row == number).nonzero().squeeze(1))
            owners.append(sample)
    if not places:
        raise SignalError("no visual token is left to choose from")
    place = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)
    return _gather(signals, place, torch.tensor(owners, device=place.device)), place


def _gather(signals: Signals, place: Tensor, sample: Tensor) -> Signals:
    tensors = {}
    for name in signals:
        tensor = signals[name][sample]
        for dim in signal_info(name).token_dims:
            shape = [1] * tensor.dim()
            shape[0], shape[dim] = place.shape
            index = place.clamp_min(0).view(shape)
            sizes = list(tensor.shape)
            sizes[dim] = place.shape[1]
            tensor = tensor.gather(dim, index.expand(sizes))
        tensors[name] = tensor
    return Signals(tensors, place >= 0, sample)


def join_groups(selection: Selection, place: Tensor, sample: Tensor, batch: int, tokens: int) -> Selection:
    """Undo `split_groups` on a selection."""
    real = place >= 0
    rows = sample[:, None].expand_as(place)[real]
    cols = place[real]

    def scatter(values: Tensor | None, fill: float | bool) -> Tensor | None:
        if values is None:
            return None
        out = torch.full((batch, tokens), fill, dtype=values.dtype, device=values.device)
        out[rows, cols] = values[real]
        return out

    merge = None
    if selection.merge is not None:
        merge = torch.zeros(batch, tokens, tokens, dtype=selection.merge.dtype, device=place.device)
        pair = real[:, :, None] & real[:, None, :]
        left = place[:, :, None].expand_as(pair)[pair]
        right = place[:, None, :].expand_as(pair)[pair]
        merge[sample[:, None, None].expand_as(pair)[pair], left, right] = selection.merge[pair]
    counts = None
    if selection.counts is not None:
        sums = [0] * batch
        for owner, count in zip(sample.tolist(), selection.counts, strict=True):
            sums[owner] += count
        counts = tuple(sums)
    keep = scatter(selection.keep, False)
    assert keep is not None
    return replace(
        selection,
        keep=keep,
        counts=counts,
        importance=scatter(selection.importance, float("nan")),
        merge=merge,
        size=scatter(selection.size, 1.0),
        rank=scatter(selection.rank, 0.0),
    )


@dataclass(frozen=True)
class Pruner:
    """One stage of a spec, runnable.

    `select(signals)` builds the problem, solves it, reads out an importance, keeps what the budget allows
    and runs the post-steps.
    """

    stage: StageSpec

    def select(
        self,
        signals: Signals,
        start: Sequence[int] | None = None,
        clock: Clock | None = None,
        check: bool = True,
    ) -> Selection:
        """Choose tokens.

        Parameters
        ----------
        signals: at least `self.stage.needs`; `group` as well when the budget holds per group and a sample
            has several.
        start: visual tokens of each sample in the unpruned prompt, for budgets relative to it; None means
            that nothing was pruned before.
        check: look for NaN and infinity in the signals, which waits for a GPU.  Callers that pass False
            must look at `signals.bad_values(needs)` themselves.

        Raises SignalError for missing or non-finite signals, ProblemError for a budget that cannot be met.
        """
        clock = clock or Clock()
        needs = self.stage.needs
        for name in sorted(needs):
            signals[name]
        if check:
            self._check(signals, needs)
        batch, tokens = signals.batch, signals.tokens
        place = None
        if self.stage.budget.scope == "group" and "group" in signals:
            grouped, place = split_groups(signals)
            alive = grouped.mask.sum(1).tolist()
            signals_here = grouped
        else:
            alive = signals.mask.sum(1).tolist() if signals.ragged else [tokens] * batch
            signals_here = signals
        started = self._started(start, alive, signals_here)
        selection = self._solve(signals_here, alive, started, clock, check)
        if place is not None:
            selection = join_groups(selection, place, signals_here.sample, batch, tokens)
        return replace(selection, seconds=dict(clock.seconds))

    def _check(self, signals: Signals, needs: frozenset[str]) -> None:
        for name in sorted(needs):
            bad = signals.bad_values([name])
            if bad.any():
                sample = int(bad.nonzero()[0, 0])
                raise SignalError(
                    f"signal {name!r} holds NaN or infinity in sample {sample}; nothing was pruned. "
                    "Check the model's dtype (try float32 or bfloat16) and its inputs"
                )

    @staticmethod
    def _started(start: Sequence[int] | None, alive: list[int], signals: Signals) -> list[int]:
        """Share the unpruned count of a sample over its groups in proportion to what is alive."""
        if start is None:
            return alive
        owners = signals.sample.tolist()
        totals: dict[int, int] = {}
        for owner, count in zip(owners, alive, strict=True):
            totals[owner] = totals.get(owner, 0) + count
        return [
            round(start[owner] * count / totals[owner]) for owner, count in zip(owners, alive, strict=True)
        ]

    def _solve(
        self, signals: Signals, alive: list[int], started: list[int], clock: Clock, check: bool
    ) -> Selection:
        stage = self.stage
        final = [stage.budget.count(s, n) for s, n in zip(started, alive, strict=True)]
        wanted = [self._before_steps(k, n) for k, n in zip(final, alive, strict=True)]
        k = torch.tensor(wanted, dtype=torch.int64, device=signals.device)
        mask = signals.mask if signals.ragged else None
        notes: list[str] = []
        importance: Tensor | None
        solution: Solution
        counts: tuple[int, ...] | None = tuple(wanted)
        if stage.problem.kind == "transport":
            keep, importance, solution = self._transport(signals, k, mask, notes, clock, check)
        else:
            problem, k, counts = self._subset(signals, k, counts, mask, check)
            clock.lap("cost")
            assert isinstance(stage.solver, SubsetSolver)
            solution = stage.solver.solve(problem)
            keep, importance = solution.keep, problem.unary
            if "exact_budget" not in stage.solver.tags:
                counts = None
            clock.lap("solve")
        selection = Selection(keep, counts, importance, solution=solution, diagnostics=tuple(notes))
        for step in stage.steps:
            before = selection.counts
            selection = step(selection, signals.view(step.needs))
            if before is not None and selection.counts is before:
                after = tuple(step.count(c, n) for c, n in zip(before, alive, strict=True))
                selection = replace(selection, counts=after)
            clock.lap("steps")
        return selection

    def _before_steps(self, final: int, tokens: int) -> int:
        """With `budget.total`, the count before the steps whose outcome is `final`."""
        if not self.stage.budget.total or not self.stage.steps:
            return final
        for k in range(final, 0, -1):
            outcome = k
            for step in self.stage.steps:
                outcome = step.count(outcome, tokens)
            if outcome <= final:
                if outcome == final:
                    return k
                break
        raise SpecError(
            f"no count before the steps gives {final} of {tokens} tokens after them; keep more tokens, "
            "or set budget.total=false so that recovered tokens come on top"
        )

    def _transport(
        self,
        signals: Signals,
        k: Tensor,
        mask: Tensor | None,
        notes: list[str],
        clock: Clock,
        check: bool,
    ) -> tuple[Tensor, Tensor, Solution]:
        stage, spec = self.stage, self.stage.problem
        if stage.rule is not None:
            k = stage.rule(signals.view(stage.rule.needs), k, None)
        problem = transport_problem(spec, signals, mask, check)
        clock.lap("cost")
        solver, readout = stage.solver, stage.readout
        assert isinstance(solver, TransportSolver) and readout is not None
        solution = solver.solve(problem)
        clock.lap("solve")
        blind = readout.ignores_cost(solver)
        if blind:
            notes.append(blind)
            warnings.warn(blind, CostBlindReadoutWarning, stacklevel=2)
        importance = readout(problem, solution)
        keep = keep_top(importance, k, signals.mask)
        clock.lap("readout")
        return keep, importance, solution

    def _subset(
        self,
        signals: Signals,
        k: Tensor,
        counts: tuple[int, ...] | None,
        mask: Tensor | None,
        check: bool,
    ) -> tuple[SubsetProblem, Tensor, tuple[int, ...] | None]:
        spec, rule = self.stage.problem, self.stage.rule
        unary = combine(spec.scores, signals, pairwise=False)
        pairwise = combine(spec.pairwise, signals, pairwise=True)
        anchors = combine_anchors(spec.anchors, signals)
        if rule is not None:
            k = rule(signals.view(rule.needs), k, unary)
            counts = None
        group = quota = None
        if spec.kind == "quota":
            if isinstance(spec.quota, Score):
                group = spec.quota(signals.view(spec.quota.needs)).long()
            else:
                group = signals[spec.quota or "group"]
            group, quota = equal_quotas(group, signals.mask, k)
        protected = None if spec.protect is None else protected_tokens(spec.protect, signals, k, unary)
        problem = SubsetProblem.build(
            spec.kind,
            k,
            unary,
            pairwise,
            mask,
            protected,
            anchors,
            spec.threshold,
            group,
            quota,
            check,
            counts,
        )
        return problem, k, counts


def protected_tokens(protect: Protect, signals: Signals, k: Tensor, unary: Tensor | None) -> Tensor:
    """`[B,N]` bool: the best tokens by the scores of `protect`, within the budget `k`."""
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
    groups = int(group.max()) + 1
    hot = torch.nn.functional.one_hot(group.clamp_min(0), groups) * mask[:, :, None]
    size = hot.sum(1).double()
    exact = size / size.sum(1, keepdim=True) * k[:, None]
    base = exact.floor().long()
    left = k - base.sum(1)
    ranked = (exact - base).argsort(dim=1, descending=True, stable=True)
    extra = torch.zeros_like(base)
    extra.scatter_(1, ranked, (torch.arange(groups, device=k.device) < left[:, None]).long())
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


def select(spec: str | Spec, signals: Signals, groups: Tensor | None = None, stage: int = 0) -> Selection:
    """Run one stage of a method on saved or live signals, without a model.

    Parameters
    ----------
    spec: a method name, a path or a Spec.  signals: canonical names and shapes (see `docs/signals.md`).
    groups: `[B,N]` int64, the image, crop or frame of every token; overrides the signal `group`.
    stage: which stage of a method with several.
    """
    spec = load_spec(spec)
    if not 0 <= stage < len(spec.stages):
        raise SpecError(f"{spec.name} has {len(spec.stages)} stages; there is no stage {stage}")
    if groups is not None:
        tensors = {name: signals[name] for name in signals}
        tensors["group"] = groups
        signals = Signals(tensors, signals.mask if signals.ragged else None)
    return Pruner(spec.stages[stage]).select(signals)


__all__ = ["Clock", "CostTerm", "Pruner", "combine", "keep_top", "normalize", "select", "transport_problem"]
