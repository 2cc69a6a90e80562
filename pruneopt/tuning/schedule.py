"""Budgets that meet a target: the other way round from a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pruneopt.errors import SpecError
from pruneopt.models.report import Shape
from pruneopt.spec.schema import Spec

TARGETS = ("layer_mean", "flops_share", "kv_share")


@dataclass(frozen=True)
class Achieved:
    """What a schedule gives for one prompt.

    Parameters
    ----------
    layer_mean
        Visual tokens averaged over decoder layers.
    flops_share, kv_share
        Multiply-adds and cache over those of the dense model.
    kept
        Visual tokens that each stage leaves.
    """

    layer_mean: float
    flops_share: float
    kv_share: float
    kept: tuple[int, ...]


def cut_layers(spec: Spec) -> list[int]:
    """The first decoder layer without the removed tokens, of every stage.

    Parameters
    ----------
    spec
        What is asked.

    Returns
    -------
    list of int
        In the order of the stages.

    Raises
    ------
    SpecError
        For a stage that cuts what has run: layers and caches are then of different length.
    """
    for stage in spec.stages:
        if stage.insertion.depth >= (2, 0):
            raise SpecError(
                f"{stage.insertion.name} cuts a cache, which the closed form of a schedule does not count; "
                "set its budget by hand"
            )
    return [stage.insertion.layer_index for stage in spec.stages]


def achieved(spec: Spec, shape: Shape, *, visual: int, text: int) -> Achieved:
    """Closed form for one picture among text, steps that change counts too.

    Parameters
    ----------
    spec
        Its budgets are what is read.
    shape
        Of the language model (`shape_of`).
    visual, text
        Tokens of the prompt.

    Returns
    -------
    Achieved
        What the schedule gives.
    """
    counts, tokens, alive = [], [visual] * shape.layers, visual
    for stage, first in zip(spec.stages, cut_layers(spec), strict=True):
        wanted = stage.budget.count(visual, alive)
        if not stage.budget.total:
            for step in stage.steps:
                wanted = step.count(wanted, alive)
        alive = wanted
        counts.append(alive)
        for layer in range(first, shape.layers):
            tokens[layer] = alive
    dense = shape.layers * shape.flops(visual + text)
    pruned = sum(shape.flops(n + text) for n in tokens)
    kv = sum(n + text for n in tokens) / (shape.layers * (visual + text))
    return Achieved(sum(tokens) / shape.layers, pruned / dense, kv, tuple(counts))


def solve_keep(spec: Spec, shape: Shape, *, visual: int, text: int, target: Mapping[str, float]) -> Spec:
    """Scale the budgets of all stages by one factor so that a target is met but not exceeded.

    Parameters
    ----------
    spec
        Its budgets give the proportions between stages.
    shape
        Of the language model (`shape_of`).
    visual, text
        Tokens of the prompt.
    target
        One of `layer_mean` (tokens), `flops_share`, `kv_share`.

    Returns
    -------
    Spec
        Its budgets are counts.

    Raises
    ------
    SpecError
        When not even one token per stage is cheap enough, or the target names nothing that can be solved for.
    """
    if len(target) != 1 or next(iter(target)) not in TARGETS:
        raise SpecError(f"give one target of {', '.join(TARGETS)}, got {', '.join(target) or 'none'}")
    name, wanted = next(iter(target.items()))
    shares = [s.budget.keep / visual if s.budget.keep > 1 else float(s.budget.keep) for s in spec.stages]

    def scaled(factor: float) -> Spec:
        stages, alive = [], visual
        for stage, share in zip(spec.stages, shares, strict=True):
            count = min(alive, max(1, int(round(share * factor * visual, 9))))
            # A budget of 1 is a ratio and keeps everything; one token is said as its share.
            keep: float | int = count if count > 1 else 1 / visual
            stages.append(replace(stage, budget=replace(stage.budget, keep=keep, relative_to="start")))
            alive = count
        return replace(spec, stages=tuple(stages))

    def value(factor: float) -> float:
        return float(getattr(achieved(scaled(factor), shape, visual=visual, text=text), name))

    # Counts grow with the factor, and so does the target: bisect, up to where the smallest stage keeps all.
    low, high = 0.0, 1 / min(shares)
    if value(low) > wanted:
        raise SpecError(
            f"{name}={wanted:g} cannot be met: one token per stage already gives {value(low):.4g}; cut "
            "earlier"
        )
    if value(high) <= wanted:
        return scaled(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) <= wanted else (low, middle)
    return scaled(low)
