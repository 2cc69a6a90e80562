"""A resolved stage made runnable: signals in, selection out.  No model is involved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneopt.brief import want_tensor
from pruneopt.compose import combine, equal_quotas, normalize, subset_problem, transport_problem
from pruneopt.errors import SignalError, SpecError
from pruneopt.grouping import join_groups, split_groups
from pruneopt.parts._ledger import Ledger, opened
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Solution, SubsetSolution
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec, StageSpec
from pruneopt.tensors import first_true, keep_top


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


@dataclass(frozen=True)
class Pruner:
    """One stage of a spec, runnable.

    `select(signals)` states the problem, solves it, keeps what the answer says and runs the post-steps.

    Parameters
    ----------
    stage
        One of `Spec.stages`.
    """

    stage: StageSpec

    def select(
        self,
        signals: Signals,
        start: Sequence[int] | None = None,
        *,
        clock: Clock | None = None,
        check: bool = True,
    ) -> Selection:
        """Choose tokens.

        Parameters
        ----------
        signals
            At least `self.stage.needs`; `group` as well when the budget holds per group and a sample has
            several.
        start
            Visual tokens of each sample in the unpruned prompt, for budgets relative to it; None means that
            nothing was pruned before.
        clock
            Where the seconds of each step go; one of its own when None.
        check
            Look for NaN and infinity in the signals, which waits for a GPU.  Callers that pass False must
            look at `signals.bad_values(needs)` themselves.

        Returns
        -------
        Selection
            Exactly the tokens that the budget allows, per sample or group.

        Raises
        ------
        SignalError
            For missing or non-finite signals.
        ProblemError
            For a budget that cannot be met.
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
            grouped, place = split_groups(signals, needs)
            alive = grouped.mask.sum(1).tolist()
            signals_here = grouped
        else:
            alive = signals.mask.sum(1).tolist() if signals.ragged else [tokens] * batch
            signals_here = signals
        started = self._started(start, alive, signals=signals_here)
        book = Ledger(check, clock.lap)
        selection = self._solve(signals_here, started, alive=alive, book=book)
        if place is not None:
            selection = join_groups(selection, place, sample=signals_here.sample, batch=batch, tokens=tokens)
        selection.seconds.update(clock.seconds)
        return selection

    def _check(self, signals: Signals, needs: frozenset[str]) -> None:
        if not signals.bad_values(needs).any():
            return
        for name in sorted(needs):
            bad = signals.bad_values([name])
            if bad.any():
                raise SignalError(
                    f"signal {name!r} holds NaN or infinity in sample {first_true(bad)}; nothing was pruned. "
                    "Check the model's dtype (try float32 or bfloat16) and its inputs"
                )

    @staticmethod
    def _started(start: Sequence[int] | None, alive: list[int], *, signals: Signals) -> list[int]:
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

    def _solve(self, signals: Signals, started: list[int], *, alive: list[int], book: Ledger) -> Selection:
        """State the problem, solve it, keep, steps: one road for every kind."""
        stage = self.stage
        final = [stage.budget.count(s, n) for s, n in zip(started, alive, strict=True)]
        wanted = tuple(self._before_steps(k, n) for k, n in zip(final, alive, strict=True))
        k = torch.tensor(wanted, dtype=torch.int64).to(signals.device, non_blocking=True)
        with opened(book):
            problem = subset_problem(
                stage.stated,
                signals,
                k=k,
                counts=wanted,
                rule=stage.rule,
                rows="rows" in stage.chooser.tags,
                check=book.check,
            )
            book.lap("cost")
            answer = stage.chooser.solve(problem)
            if stage.rule is not None:
                settled = stage.rule.settle(answer, k, sample=signals.sample)
                if settled is not answer:  # it may have given up protected tokens
                    answer, book.protects = settled, None
            book.lap("solve")
            evidence = self._evidence(book, answer)
            # where k is a maximum, even an exact solver may keep fewer
            full = "exact_budget" in stage.chooser.tags and not answer.problem.rules.at_most
            selection = Selection(
                answer.keep,
                answer.problem.counts if full else None,
                problem.unary,
                solution=evidence["problem"],
                evidence=evidence,
                diagnostics=tuple(book.notes),
            )
            for step in stage.steps:
                before = selection.counts
                selection = step(selection, signals.view(step.needs))
                if before is not None and selection.counts is before:
                    after = tuple(step.count(c, n) for c, n in zip(before, alive, strict=True))
                    selection = replace(selection, counts=after)
                book.lap("steps")
        return selection

    def _evidence(self, book: Ledger, answer: SubsetSolution) -> dict[str, Solution]:
        """Every solution by the dotted key of what asked for it; what the spec states stands at `problem`."""
        found: dict[str, Solution] = {}
        if book.solved:
            keys = {id(part): key for key, part in self.stage.keyed.items()}
            found = {keys.get(id(part), part.name): s for part, s in book.solved}
        found[f"problem.{answer.problem.kind}" if "problem" in found else "problem"] = answer
        return found

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


def select(
    spec: str | Spec,
    signals: Signals | Mapping[str, Tensor],
    *,
    groups: Tensor | None = None,
    stage: int = 0,
) -> Selection:
    """Run one stage of a method on saved or live signals, without a model.

    Parameters
    ----------
    spec
        A method name, a path or a Spec.
    signals
        Canonical names and shapes (see `docs/signals.md`).
    groups
        The image, crop or frame of every token; overrides the signal `group`.
    stage
        Which stage of a method with several.

    Returns
    -------
    Selection
        Exactly the tokens that the budget allows.

    Raises
    ------
    SpecError
        For the spec or stage.
    SignalError
        For signals that are missing or no tensors.
    """
    spec = spec if isinstance(spec, Spec) else load_spec(spec)
    if not 0 <= stage < len(spec.stages):
        raise SpecError(f"{spec.name} has {len(spec.stages)} stages; there is no stage {stage}")
    if not isinstance(signals, Signals):
        if not isinstance(signals, Mapping):
            raise SignalError(
                f"signals must be pruneopt.Signals, or a mapping from names to tensors, got {type(signals)}; "
                'give Signals({"features": tokens})'
            )
        signals = Signals(signals)
    if groups is not None:
        want_tensor("groups", groups, error=SignalError)
        tensors = {name: signals[name] for name in signals}
        tensors["group"] = groups
        signals = Signals(tensors, signals.mask if signals.ragged else None)
    return Pruner(spec.stages[stage]).select(signals)


__all__ = [
    "Clock", "Pruner", "combine", "equal_quotas", "join_groups", "keep_top", "normalize", "select",
    "split_groups", "transport_problem",
]  # fmt: skip
