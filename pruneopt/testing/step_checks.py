"""Checks of post-steps and of budget rules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from pruneopt.compose import keep_top
from pruneopt.parts import BudgetRule, Step
from pruneopt.problems.selection import Selection
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals
from pruneopt.testing import cases
from pruneopt.testing.calls import agree
from pruneopt.testing.core import Check, checks_that, require
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.purity import require_own_generator, require_pure, tensors_in


def selection_on(
    signals: Signals, share: float = 0.4, *, seed: int = 0, order: Tensor | None = None
) -> Selection:
    """A selection of a share of every sample by random scores that follow the tokens under `order`.

    The better half of it is protected, the tokens fall into three groups, and there is a transport plan
    between tokens of near scores, as steps may read.
    """
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(signals.tokens, generator=g).expand(signals.batch, -1)
    group = (torch.arange(signals.tokens) % 3).expand(signals.batch, -1)
    if order is not None:
        score, group = score[:, order], group[:, order]
    counts = tuple(max(1, int(share * n)) for n in signals.mask.sum(1).tolist())
    return _selected(signals, score, group=group, counts=counts)


def _selected(signals: Signals, score: Tensor, *, group: Tensor, counts: tuple[int, ...]) -> Selection:
    from pruneopt.parts.solvers.one_sided import OneSided
    from pruneopt.parts.solvers.stable_top_k import StableTopK

    mask = signals.mask if signals.ragged else None
    real = signals.mask.double()
    mass = real / real.sum(1, keepdim=True)
    apart = (score[:, :, None] - score[:, None, :]).abs()
    plan = OneSided().solve(TransportProblem.build(apart, a=mass, b=mass, row_mask=mask, col_mask=mask))
    k = torch.tensor(counts)
    (kind,) = StableTopK.kinds
    problem = SubsetProblem.build(
        kind,
        k,
        unary=score,
        mask=mask,
        protected=keep_top(score, k // 2, mask=signals.mask),
        group=group,
        counts=counts,
    )
    solution = StableTopK().solve(problem)
    evidence = {"problem": solution, "problem.scores.near": plan}
    return Selection(solution.keep, counts, score, solution=solution, evidence=evidence)


def apply(step: Step, selection: Selection, *, signals: Signals) -> Selection:
    """The step on a guarded view of its signals."""
    return step(selection, signals.view(step.needs))


def check_selection_is_sound(step: Step) -> None:
    """A Selection comes back with a bool `keep` on real tokens only, finite merge weights and sizes."""
    for lengths in (None, (12, 6)):
        signals = cases.make_signals(step.needs, lengths=lengths)
        out = apply(step, selection_on(signals), signals=signals)
        require(isinstance(out, Selection), f"returned {type(out).__name__}, not a Selection")
        require(
            out.keep.dtype == torch.bool and out.keep.shape == (2, 12),
            f"keep is {out.keep.dtype} {list(out.keep.shape)}",
        )
        require(not (out.keep & ~signals.mask).any(), "padding is kept; combine with signals.mask")
        used = {"merge": out.merge is not None, "reordering": out.rank is not None}
        for what in (name for name, asked in used.items() if asked):
            require(what in step.asks, f"asks for a {what} without saying so; add it to `asks`")
        require(len(out.evidence) == 2, "the evidence of the selection is lost; use dataclasses.replace")
        for name, shape in (("merge", (2, 12, 12)), ("size", (2, 12)), ("rank", (2, 12))):
            tensor = getattr(out, name)
            if tensor is None:
                continue
            require(tensor.shape == shape, f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
            rows = tensor[out.keep]
            require(rows.isfinite().all(), f"{name} is not finite at a kept token")
        if out.merge is not None:
            padded = out.merge.masked_fill(signals.mask[:, None, :], 0)[out.keep]
            require(not (padded != 0).any(), "padding is merged into a kept token")


def check_count_agrees(step: Step) -> None:
    """`count(kept, tokens)` is what comes out, for every share; `counts=None` where only the data knows."""
    for tokens in (12, 6, 1):
        for share in (0.1, 0.4, 1.0):
            signals = cases.make_signals(step.needs, tokens=tokens)
            before = selection_on(signals, share)
            out = apply(step, before, signals=signals)
            kept = out.keep.sum(1).tolist()
            if out.counts is None:
                continue
            claimed = list(out.counts)
            if out.counts is before.counts:
                assert before.counts is not None
                claimed = [step.count(c, tokens) for c in before.counts]
            require(
                kept == claimed,
                f"keeps {kept} tokens where its count says {claimed} (N={tokens}); fix `count`, or return "
                "counts=None if the number depends on the data",
            )


def check_step_batch(step: Step) -> None:
    """A sample gives in a ragged batch what it gives alone, whatever stands at padding."""
    signals = cases.make_signals(step.needs, lengths=(12, 6))
    out = apply(step, selection_on(signals), signals=signals)
    for b in range(2):
        after = _alone(step, signals, whole=selection_on(signals), b=b)
        here = torch.arange(after.keep.shape[1])
        _require_alike(out, after, b=b, here=here, where=f"sample {b} of a ragged batch")
    dirty = cases.garbage_in_padding(signals)
    again = apply(step, selection_on(dirty), signals=dirty)
    require(torch.equal(again.keep, out.keep), "values at padded tokens change what is kept")


def _alone(step: Step, signals: Signals, *, whole: Selection, b: int) -> Selection:
    """What a step makes of sample b without the others, from its part of the selection `whole`."""
    assert whole.importance is not None and whole.counts is not None
    single = cases.sample_alone(signals, b)
    score, group = (t[b : b + 1, : single.tokens] for t in (whole.importance, _group(whole)))
    return apply(step, _selected(single, score, group=group, counts=(whole.counts[b],)), signals=single)


def _group(selection: Selection) -> Tensor:
    return selection.solution.problem.group  # type: ignore[union-attr, return-value]


def _require_alike(out: Selection, alone: Selection, *, b: int, here: Tensor, where: str) -> None:
    """Fail unless sample b of `out` is at its tokens `here` what it is alone."""
    same = torch.equal(out.keep[b, here], alone.keep[0])
    require(same, f"{where} keeps other tokens than alone; mind signals.mask")
    if out.merge is not None and alone.merge is not None:
        rows = out.merge[b][here][:, here][alone.keep[0]]
        require(
            agree(rows, alone.merge[0][alone.keep[0]]) < 1e-4, f"{where} is merged differently than alone"
        )


def check_step_padding(step: Step) -> None:
    """Padding may stand between tokens and hold numbers below, between or above all real ones."""
    signals = cases.make_signals(step.needs, tokens=14, lengths=(12, 6))
    whole = selection_on(signals)
    assert whole.importance is not None and whole.counts is not None
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        place = old.clamp_min(0)
        score = cases.fill_out(whole.importance.gather(1, place), moved.mask, fill=fill)
        before = _selected(moved, score, group=_group(whole).gather(1, place), counts=whole.counts)
        out = apply(step, before, signals=moved)
        where = f"a sample with padding between its tokens, {fill} all real values,"
        require(not (out.keep & ~moved.mask).any(), f"{where} keeps padding; mind signals.mask")
        for b in range(2):
            here = (old[b] >= 0).nonzero().squeeze(1)
            _require_alike(out, _alone(step, signals, whole=whole, b=b), b=b, here=here, where=where)


def check_step_pure(step: Step) -> None:
    """Selection and signals are unchanged and two calls agree."""
    signals = cases.make_signals(step.needs)
    before = selection_on(signals)
    given = {**tensors_in(before), **{f"signal {name!r}": signals[name] for name in signals}}
    require_pure(lambda: apply(step, before, signals=signals).keep, given)


def check_step_rng(step: Step) -> None:
    """The global random generators are neither used nor moved."""
    signals = cases.make_signals(step.needs)
    require_own_generator(lambda: apply(step, selection_on(signals), signals=signals).keep)


def check_step_permutation(step: Step) -> None:
    """Permuting tokens with their coordinates permutes the outcome."""
    signals = cases.make_signals(step.needs)
    order = cases.shuffle(12, 1)
    out = apply(step, selection_on(signals), signals=signals)
    moved = cases.permuted(signals, order)
    after = apply(step, selection_on(moved, order=order), signals=moved)
    require(
        torch.equal(after.keep, out.keep[:, order]),
        "permuting the tokens changes what is kept; tag the step `uses_order` if its rule is by index",
    )
    if out.merge is not None:
        assert after.merge is not None
        wanted = out.merge[:, order][:, :, order]
        same = agree(after.merge[after.keep], wanted[after.keep]) < 1e-4
        require(same, "permuting the tokens changes what is merged into what")


def step_checks(step: Step) -> Iterator[Check]:
    """Checks of a post-step."""
    yield from part_checks(step)
    applies = {
        check_selection_is_sound: True,
        check_count_agrees: True,
        check_step_pure: True,
        check_step_rng: True,
        check_step_batch: "across_batch" not in step.tags,
        check_step_padding: "across_batch" not in step.tags,
        check_step_permutation: "uses_order" not in step.tags,
    }
    yield from checks_that(applies)


def check_counts_in_range(rule: BudgetRule) -> None:
    """One whole number per problem, from 1 to its tokens."""
    for lengths in (None, (12, 6)):
        for importance in (torch.rand(2, 12, generator=torch.Generator().manual_seed(0)), None):
            for k in (1, 3, 6):
                signals = cases.make_signals(rule.needs, lengths=lengths)
                try:
                    out = rule(signals.view(rule.needs), torch.tensor([k, k]), importance=importance)
                except Exception:
                    if importance is None:
                        continue  # a rule may need scores
                    raise
                require(
                    out.shape == (2,) and not out.is_floating_point(),
                    f"returned {out.dtype} {list(out.shape)}",
                )
                good = (out >= 1) & (out <= signals.mask.sum(1))
                require(
                    good.all(), f"counts {out.tolist()} of {signals.mask.sum(1).tolist()} tokens for k={k}"
                )


def check_rule_batch(rule: BudgetRule) -> None:
    """A sample gets in a ragged batch the count it gets alone, wherever padding stands and whatever it is."""
    g = torch.Generator().manual_seed(0)
    signals = cases.make_signals(rule.needs, tokens=14, lengths=(12, 6))
    importance, k = torch.rand(2, 14, generator=g), torch.tensor([7, 3])
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        score = cases.fill_out(importance.gather(1, old.clamp_min(0)), moved.mask, fill=fill)
        out = rule(moved.view(rule.needs), k, importance=score)
        for b in range(2):
            single = cases.sample_alone(signals, b)
            alone = rule(
                single.view(rule.needs), k[b : b + 1], importance=importance[b : b + 1, : single.tokens]
            )
            require(
                out[b].tolist() == alone[0].tolist(),
                f"sample {b} gets {int(out[b])} tokens in a batch with padding {fill} its values, and "
                f"{int(alone[0])} alone; count signals.mask and nothing else",
            )


def check_rule_pure(rule: BudgetRule) -> None:
    """Counts and importance are unchanged, two calls agree, and no global generator is used."""
    signals = cases.make_signals(rule.needs)
    importance = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([4, 4])
    run = partial(rule, signals.view(rule.needs), k, importance=importance)
    require_pure(run, {"the counts": k, "the importance": importance})
    require_own_generator(run)


def budget_checks(rule: BudgetRule) -> Iterator[Check]:
    """Checks of a budget rule."""
    yield from part_checks(rule)
    applies = {
        check_counts_in_range: True,
        check_rule_batch: "across_batch" not in rule.all_tags,
        check_rule_pure: True,
    }
    yield from checks_that(applies)
