"""`pruneopt bench select --gap`: how far greedy methods are from the optimum of their own problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pruneopt.demo.assets import load_inputs, load_model
from pruneopt.grouping import gather_tokens
from pruneopt.lab.clock import Stopwatch
from pruneopt.lab.environment import environment
from pruneopt.lab.pictures import first_questions
from pruneopt.lab.progress import progress
from pruneopt.lab.record_signals import record_signals
from pruneopt.lab.records import write_record
from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers.local_search import LocalSearch
from pruneopt.problems.subset import SubsetProblem
from pruneopt.pruner import Pruner
from pruneopt.registry import registry
from pruneopt.signals import Signals, signal_info
from pruneopt.spec.load import load_spec


@dataclass(frozen=True)
class Greedy:
    """A method whose rule is a heuristic for a problem, and the exact solvers of that problem."""

    label: str
    method: str
    problem: str
    exact: str
    overrides: tuple[str, ...] = ()
    small: tuple[int, int] = (36, 9)  # tokens and budget of the window that `exact` solves
    whole: str = ""  # what solves a whole picture; empty where only a bound is within reach
    pooled: bool = False  # whether the tokens of four pictures are also one problem


# Saliency scaled to [0,1]: the paper asks for exactly k tokens, ours for at most k, which is the same when no
# score is negative, and the greedy order does not change.
_SALIENCY = ("solver.on_shortfall=stop", "problem.scores.saliency.normalize=minmax")
_NO_TEXT = ("problem.scores.relevance=null",)
GREEDY = (
    Greedy("DivPrune", "divprune", "max-min dispersion, cosine distance", "branch_and_bound",
           whole="milp", pooled=True),
    Greedy("CDPruner", "cdpruner", "log-determinant with text quality", "branch_and_bound"),
    Greedy("CDPruner, no text", "cdpruner", "log-determinant of cosines", "branch_and_bound", _NO_TEXT,
           pooled=True),
    Greedy("GreedyPrune", "greedyprune", "weighted independent set", "milp", _SALIENCY, whole="milp"),
    Greedy("ToDRE stage 1", "todre/diversity", "max-sum dispersion, pivot given", "brute_force", (), (16, 5)),
    Greedy("DART", "dart", "max-min dispersion of what is kept", "branch_and_bound", whole="milp"),
    Greedy("ZSPAPrune", "zspaprune", "max-min dispersion, relevant core given", "branch_and_bound",
           whole="milp"),
    Greedy("SAINT encoder mode", "saint/encoder", "max-sum dispersion", "brute_force", (), (16, 5),
           pooled=True),
)  # fmt: skip
RANDOM_SEEDS = 5
POOLED, POOLED_KEEP = 4, 64  # pictures whose tokens are one problem, and how many of them are kept


@dataclass(frozen=True)
class Plan:
    """Embedded pictures to look at, and seconds for each exact solve."""

    pictures: int = 8
    time_limit: float = 60.0


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Gaps on features of the embedded model; one record, `out/gap.json`.

    Every method runs on two sizes: a window of 36 with 9 kept (16 with 5 for max-sum), where the optimum is
    solved for (within `time_limit` seconds per problem), and all tokens of a picture with a quarter kept,
    where it is solved for or bounded from above; some on the tokens of four pictures as well.  Random
    selections of the same size stand beside, so that a gap can be read as a share of what there was to gain.
    """
    model, inputs, count = _embedded(plan.pictures)
    machine, rows = environment(), []
    with progress(console, "methods", total=len(GREEDY)) as step:
        for greedy in GREEDY:
            signals = _signals(model, inputs, greedy=greedy)
            near = gather_tokens(signals, window(signals, greedy.small[0]), sample=signals.sample)
            small, whole = (_exact(name, plan.time_limit) for name in (greedy.exact, greedy.whole))
            rows.append(_gaps(greedy, near, keep=greedy.small[1], exact=small))
            rows.append(_gaps(greedy, signals, keep=count // 4, exact=whole))
            if greedy.pooled and plan.pictures >= POOLED:
                rows.append(_gaps(greedy, pooled(signals), keep=POOLED_KEEP, exact=whole))
            step(1, f"{greedy.label}: {greedy.problem}")
    setting = {"pictures": plan.pictures, "time_limit": plan.time_limit, "random_seeds": RANDOM_SEEDS}
    write_record(out / "gap.json", {"machine": machine, "setting": setting, "rows": rows})


def _embedded(pictures: int) -> tuple[Any, Any, int]:
    questions = first_questions(pictures)
    model, processor = load_model()
    inputs = load_inputs(questions, processor)
    count = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    return model, inputs, count


def _signals(model: Any, inputs: Any, *, greedy: Greedy) -> Signals:
    stage = load_spec(greedy.method, greedy.overrides).stages[0]
    names = {_at_demo(name) for name in stage.needs} | {"xy", "grid"}
    signals = record_signals(model, inputs, names=names, insertion=stage.insertion.to_spec())
    wanted = {name: signals[_at_demo(name)] for name in stage.needs}
    geometry = {name: signals[name] for name in ("xy", "grid")}
    return Signals({**geometry, **wanted}, signals.mask if signals.ragged else None)


def _at_demo(name: str) -> str:
    """The embedded tower has fewer layers than CLIP-L: a named encoder layer becomes the last but one."""
    base, _, layer = name.partition("@")
    return f"{base}@-2" if layer and base.startswith(("encoder", "cls")) else name


def window(signals: Signals, tokens: int) -> Tensor:
    """`[B,n]` indices of a central square window of the grid with `tokens` cells."""
    xy, grid = signals["xy"].long(), signals["grid"].long()
    side = math.isqrt(tokens)
    low = (grid - side) // 2
    inside = ((xy >= low) & (xy < low + side)).all(2)
    return torch.stack([row.nonzero().squeeze(1) for row in inside])


def pooled(signals: Signals) -> Signals:
    """The tokens of every four samples in a row as one sample; what has no tokens is that of the first."""
    every = signals.mask.shape[0] // POOLED * POOLED
    parts = range(POOLED)
    tensors = {}
    for name in signals:
        dims = signal_info(name).token_dims
        tensor = signals[name][:every]
        joined = torch.cat([tensor[i::POOLED] for i in parts], dims[0]) if dims else tensor[::POOLED]
        tensors[name] = joined
    mask = torch.cat([signals.mask[:every][i::POOLED] for i in parts], 1) if signals.ragged else None
    return Signals(tensors, mask)


def _exact(name: str, time_limit: float) -> SubsetSolver | None:
    if not name:
        return None
    limited = {"time_limit": time_limit} if name != "brute_force" else {}
    part = registry("solvers").get(name).from_spec(limited)  # type: ignore[attr-defined]
    assert isinstance(part, SubsetSolver)
    return part


def _gaps(greedy: Greedy, signals: Signals, *, keep: int, exact: SubsetSolver | None) -> dict[str, Any]:
    spec = load_spec(greedy.method, greedy.overrides)
    stage = spec.stages[0]
    budget = replace(stage.budget, keep=keep, scope="sample", relative_to="current")
    solution = Pruner(replace(stage, budget=budget, rule=None)).select(signals).solution
    problem = solution.problem  # type: ignore[union-attr]
    value = problem.value(solution.keep)  # type: ignore[union-attr]
    watch = Stopwatch()
    upper = solution.upper_bound  # type: ignore[union-attr]
    seconds, processor = watch.wall, watch.processor
    upper = torch.full_like(value, math.nan) if upper is None else upper
    statuses: list[str] = []
    if exact is not None:
        solved = exact.solve(problem)
        optimum = problem.value(solved.keep)
        statuses = [status.name for status in solved.status]
        proved = torch.tensor([status.proved for status in solved.status])
        bound = solved.upper_bound
        best = torch.where(proved, optimum, optimum if bound is None else bound)
    else:
        optimum = LocalSearch().solve(problem).value
        best = upper
    chance = torch.stack([_random_value(problem, seed) for seed in range(RANDOM_SEEDS)])
    if problem.rules.offers("broken"):  # random sets break its constraint: how often, not a value
        chance = torch.full_like(chance, math.nan)
    return {
        "label": greedy.label, "method": greedy.method, "problem": greedy.problem, "kind": problem.kind,
        "tokens": signals.tokens, "keep": keep, "exact": exact is not None, "status": statuses,
        "value": _numbers(value), "best": _numbers(best), "random": _numbers(chance.mean(0)),
        "bound": _numbers(upper), "known": _numbers(torch.maximum(value, optimum)),
        "seconds": seconds, "processor_seconds": processor,
    }  # fmt: skip


def _random_value(problem: SubsetProblem, seed: int) -> Tensor:
    """Value of random sets of the right size that contain what the problem protects."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(problem.shape, generator=generator)
    if problem.protected is not None:
        score = score + problem.protected.float()
    order = score.argsort(dim=1, descending=True)
    keep = torch.zeros(problem.shape, dtype=torch.bool)
    slots = torch.arange(order.shape[1])
    keep.scatter_(1, order, slots < problem.k[:, None])
    return problem.value(keep)


def _numbers(values: Tensor) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values.tolist()]
