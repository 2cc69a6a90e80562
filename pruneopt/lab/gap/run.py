"""`pruneopt bench select --gap`: how far greedy methods are from the optimum of their own problem."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pruneopt.errors import InputError
from pruneopt.grouping import gather_tokens
from pruneopt.lab.clock import wide
from pruneopt.lab.pages import insert
from pruneopt.lab.records import environment
from pruneopt.lab.selection.run import select_markdown
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.pruner import Pruner
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


@dataclass(frozen=True)
class Greedy:
    """A method whose rule is a heuristic for a problem, and the exact solver of that problem."""

    label: str
    method: str
    problem: str
    exact: str
    overrides: tuple[str, ...] = ()
    small: tuple[int, int] = (36, 9)  # tokens and budget at which the exact solver is asked


# Saliency scaled to [0,1]: the paper asks for exactly k tokens, ours for at most k, which is the same when no
# score is negative, and the greedy order does not change.
_SALIENCY = ("solver.on_shortfall=stop", "problem.scores.saliency.normalize=minmax")
GREEDY = (
    Greedy("DivPrune", "divprune", "max-min dispersion, cosine distance", "branch_and_bound"),
    Greedy("CDPruner", "cdpruner", "log-determinant with text quality", "branch_and_bound"),
    Greedy("GreedyPrune", "greedyprune", "weighted independent set", "milp", _SALIENCY),
    Greedy("ToDRE stage 1", "todre/diversity", "max-sum dispersion, pivot given", "brute_force", (), (16, 5)),
    Greedy("DART", "dart", "max-min dispersion of what is kept", "branch_and_bound"),
    Greedy("ZSPAPrune", "zspaprune", "max-min dispersion, relevant core given", "branch_and_bound"),
    Greedy("SAINT encoder mode", "saint/encoder", "max-sum dispersion", "brute_force", (), (16, 5)),
)
RANDOM_SEEDS = 5


def run_gap_bench(
    out: Path, pictures: int = 8, time_limit: float = 20.0, console: Console | None = None
) -> Path:
    """Gaps on features of the embedded model; one JSON record `out/gap.json`.

    Every method runs on two sizes: all tokens of a picture with a quarter kept, where the optimum is bounded
    from above, and a window of 36 with 9 kept (16 with 5 for max-sum), where it is solved for (within
    `time_limit` seconds per problem).  Random selections of the same size stand beside, so that a gap can be
    read as a share of what there was to gain.
    """
    console = console or wide()
    model, inputs, count = _embedded(pictures)
    rows = []
    for greedy in GREEDY:
        console.print(f"{greedy.label}: {greedy.problem}", highlight=False)
        signals = _signals(model, inputs, greedy)
        for tokens, keep in (greedy.small, (count, count // 4)):
            small = (
                signals
                if tokens == count
                else gather_tokens(signals, window(signals, tokens), signals.sample)
            )
            exact = _exact(greedy, time_limit) if tokens != count else None
            rows.append(_gaps(greedy, small, tokens, keep, exact))
    record = {
        "machine": environment(),
        "setting": {"pictures": pictures, "time_limit": time_limit, "random_seeds": RANDOM_SEEDS},
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gap.json"
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    console.print(_table(record))
    return path


def _embedded(pictures: int) -> tuple[Any, Any, int]:
    from pruneopt.demo.assets import load_inputs, load_model, load_questions

    seen: dict[Any, Any] = {}
    for question in load_questions():
        seen.setdefault(question.image, question)
    if pictures > len(seen):
        raise InputError(f"asked for {pictures} pictures; {len(seen)} are embedded")
    model, processor = load_model()
    inputs = load_inputs(list(seen.values())[:pictures], processor)
    count = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    return model, inputs, count


def _signals(model: Any, inputs: Any, greedy: Greedy) -> Signals:
    from pruneopt.lab.record_signals import record_signals

    stage = load_spec(greedy.method, greedy.overrides).stages[0]
    names = {_at_demo(name) for name in stage.needs} | {"xy", "grid"}
    insertion, layer = stage.insertion.name, stage.insertion.layer_index
    signals = record_signals(model, inputs, names, insertion, max(layer, 1))
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


def _exact(greedy: Greedy, time_limit: float) -> SubsetSolver:
    limited = {"time_limit": time_limit} if greedy.exact != "brute_force" else {}
    part = registry("solvers").get(greedy.exact).from_spec(limited)  # type: ignore[attr-defined]
    assert isinstance(part, SubsetSolver)
    return part


def _gaps(
    greedy: Greedy, signals: Signals, tokens: int, keep: int, exact: SubsetSolver | None
) -> dict[str, Any]:
    spec = load_spec(greedy.method, greedy.overrides)
    stage = spec.stages[0]
    budget = replace(stage.budget, keep=keep, scope="sample", relative_to="current")
    solution = Pruner(replace(stage, budget=budget, rule=None)).select(signals).solution
    problem = solution.problem  # type: ignore[union-attr]
    value = problem.value(solution.keep)  # type: ignore[union-attr]
    statuses: list[str] = []
    if exact is not None:
        solved = exact.solve(problem)
        optimum = problem.value(solved.keep)
        statuses = [status.name for status in solved.status]
        proved = torch.tensor([status.proved for status in solved.status])
        bound = solved.upper_bound
        best = torch.where(proved, optimum, optimum if bound is None else bound)
    else:
        best = solution.upper_bound  # type: ignore[union-attr]
        best = torch.full_like(value, math.nan) if best is None else best
    chance = torch.stack([_random_value(problem, seed) for seed in range(RANDOM_SEEDS)])
    if problem.rules.offers("broken"):  # random sets break its constraint: how often, not a value
        chance = torch.full_like(chance, math.nan)
    return {
        "label": greedy.label, "method": greedy.method, "problem": greedy.problem, "kind": problem.kind,
        "tokens": tokens, "keep": keep, "exact": exact is not None, "status": statuses,
        "value": _numbers(value), "best": _numbers(best), "random": _numbers(chance.mean(0)),
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


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Mean and worst gap of a row, in its own unit and relative, and the share of proved optima.

    Gaps are best minus value as they are: one below zero means that a value or a bound is wrong, and
    `contradicted` counts those beyond rounding (1e-6 of the best, or 1e-6 nats).  A value that is not finite
    has an infinite gap; pictures without a best are left out.
    """
    pairs = [
        (-math.inf if v is None else v, b)
        for v, b in zip(row["value"], row["best"], strict=True)
        if b is not None
    ]
    gaps = [b - v for v, b in pairs]
    slack = [1e-6 if _nats(row) else 1e-6 * abs(b) for _, b in pairs]
    relative = [g / abs(b) if b else math.copysign(math.inf, g) if g else 0.0
                for g, (_, b) in zip(gaps, pairs, strict=True)]  # fmt: skip
    gained = [
        (v - r) / (b - r)
        for v, b, r in zip(row["value"], row["best"], row["random"], strict=True)
        if v is not None and b is not None and r is not None and b > r
    ]
    return {
        "pictures": len(pairs),
        "mean": sum(gaps) / len(gaps) if gaps else math.nan,
        "worst": max(gaps, key=abs, default=math.nan),
        "relative": sum(relative) / len(relative) if relative else math.nan,
        "relative_worst": max(relative, key=abs, default=math.nan),
        "gained": sum(gained) / len(gained) if gained else math.nan,
        "proved": row["status"].count("OPTIMAL"),
        "optimal": sum(abs(g) <= s for g, s in zip(gaps, slack, strict=True)),
        "contradicted": sum(g < -s for g, s in zip(gaps, slack, strict=True)),
    }


def gap_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the gap table."""
    head = [
        "method",
        "problem",
        "k of N",
        "optimum",
        "greedy optimal",
        "mean gap",
        "worst gap",
        "gained over random",
    ]
    body = []
    for row in record["rows"]:
        s = summary(row)
        known = f"proved in {s['proved']} of {s['pictures']}" if row["exact"] else "upper bound"
        if not s["pictures"]:
            known = "no bound"
        if s["contradicted"]:
            known += f"; ERROR: below the value in {s['contradicted']}"
        mean, worst = _gap(row, s["mean"], s["relative"]), _gap(row, s["worst"], s["relative_worst"])
        gained = "-" if math.isnan(s["gained"]) else f"{100 * s['gained']:.0f}%"
        best = f"{s['optimal']} of {s['pictures']}" if row["exact"] else "-"
        body.append(
            [
                row["label"],
                row["problem"],
                f"{row['keep']} of {row['tokens']}",
                known,
                best,
                mean,
                worst,
                gained,
            ]
        )
    return head, body


def _gap(row: dict[str, Any], gap: float, relative: float) -> str:
    if math.isnan(gap):
        return "-"
    number = gap if _nats(row) else 100 * relative
    if math.isinf(number):
        return "infinite"
    return f"{round(number, 3) + 0.0:.3f} nats" if _nats(row) else f"{round(number, 2) + 0.0:.2f}%"


def _nats(row: dict[str, Any]) -> bool:
    return find_kind(row["kind"]).unit == "nats"


def _table(record: dict[str, Any]) -> Table:
    head, body = gap_rows(record)
    table = Table(*head, title="optimality gaps")
    for row in body:
        table.add_row(*row)
    return table


def gap_markdown(record: dict[str, Any]) -> str:
    """The gap table as Markdown, with how to read it."""
    head, body = gap_rows(record)
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    setting = record["setting"]
    lines += [
        "",
        f"Features of the embedded model on {setting['pictures']} pictures. A gap is (best - greedy) / "
        "|best|, or a difference of log-determinants. Rows with an upper bound overstate the gap by what the "
        "bound is loose; proved optima are exact. Random sets of the same size "
        f"({setting['random_seeds']} seeds) are 0% "
        "of what could be gained, the best known value is 100%.",
    ]
    return "\n".join(lines)


def write_tables(out: Path, into: Path | None, names: Sequence[str] = ("select", "gap")) -> None:
    """Markdown beside every record of `out`, and between the marks of page `into` where it has them."""
    for name, render in (("select", select_markdown), ("gap", gap_markdown)):
        path = out / f"{name}.json"
        if name not in names or not path.is_file():
            continue
        text = render(json.loads(path.read_text(encoding="utf-8")))
        (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        if into is not None and f"<!-- begin: {name} -->" in into.read_text(encoding="utf-8"):
            insert(into, name, text)
