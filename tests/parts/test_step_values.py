"""Every step against plain loops, sample by sample, away from its defaults and with padding anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pruneopt.compose import keep_top
from pruneopt.parts.solvers.stable_top_k import StableTopK
from pruneopt.parts.steps.recycle_clusters import density_noise
from pruneopt.problems.selection import Selection
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.testing import cases

LENGTHS = (16, 9)
Case = tuple[dict[str, np.ndarray], np.ndarray, list[int], list[int]]  # signals, scores, kept, protected
# what a step makes: kept tokens in order of emission, and the rows of weights that build them
Answer = tuple[list[int], np.ndarray]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows_of(metric: np.ndarray) -> np.ndarray:
    return unit(metric.mean(0) if metric.ndim == 3 else metric)


def plain(kept: list[int], n: int) -> Answer:
    return kept, np.eye(n)[kept]


def recover(interval: int) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        n = len(case[1])
        dropped = [i for i in range(n) if i not in case[2]]
        return plain(sorted(case[2] + dropped[::interval]), n)

    return formula


def grid(divide: int, start: str, skip: bool, order: str) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        _, score, kept, _ = case
        n = len(score)
        stride = max(1, n // len(kept) // divide)
        points = range(stride // 2 if start == "half" else 0, n - 1 if skip else n, stride)
        added = [i for i in points if i not in kept]
        if order == "index":
            return plain(sorted(kept + added), n)
        return plain(sorted(kept, key=lambda i: -score[i]) + added, n)

    return formula


def recycle_cells(cell: float) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        signals, score, kept, _ = case
        n = len(score)
        cells: dict[tuple, list[int]] = {}
        for i in range(n):
            if i not in kept:
                x, y = signals["xy"][i]
                cells.setdefault((signals["group"][i], int(x // cell), int(y // cell)), []).append(i)
        weights = np.eye(n)
        for members in cells.values():
            carrier = max(members, key=lambda i: (score[i], -i))
            weights[carrier] = 0
            weights[carrier, members] = score[members] / score[members].sum()
            kept = [*kept, carrier]
        return sorted(kept), weights[sorted(kept)]

    return formula


def nearest(signal: str, targets: str, combine: str, carry: bool, order: str) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        signals, score, kept, protected = case
        n = len(score)
        near = rows_of(signals[signal]) @ rows_of(signals[signal]).T
        goals = {"kept": kept, "protected": protected, "unprotected": [i for i in kept if i not in protected]}
        size = signals["size"] if carry else np.ones(n)
        members: dict[int, list[int]] = {t: [] for t in goals[targets]}
        for i in range(n):
            if i not in kept and members:
                members[max(goals[targets], key=lambda t, i=i: (near[i, t], -t))].append(i)
        weights = np.eye(n)
        for t, group in members.items():
            if combine == "add_mean":
                weights[t, group] = 1 / max(len(group), 1)
            else:
                mass = size if combine == "size_mean" else np.ones(n)
                all_of = [t, *group]
                weights[t] = 0
                weights[t, all_of] = mass[all_of] / mass[all_of].sum()
        if order == "protected_first":
            kept = [i for i in kept if i in protected] + [i for i in kept if i not in protected]
        elif order == "matched":
            rest = sorted((i for i in kept if i not in protected), key=lambda i: score[i])
            kept = rest + [i for i in kept if i in protected]
        return kept, weights[kept]

    return formula


def enrich(neighbours: int, combine: str, extra: bool, order: str) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        signals, score, kept, _ = case
        n = len(score)
        keys = np.concatenate(list(signals["encoder_keys"]), 1)
        near = unit(keys) @ unit(keys).T
        dropped = [i for i in range(n) if i not in kept]
        out = list(kept) if order == "index" else sorted(kept, key=lambda i: -score[i])
        weights = np.eye(n)
        for i in kept:
            pool = [j for j in (range(n) if combine == "sum" else dropped) if j != i]
            best = sorted(pool, key=lambda j, i=i: -near[i, j])[:neighbours]
            weights[i, best] = score[best]
            if combine == "average":
                weights[i, i] = score[i]
                weights[i] /= weights[i].sum()
        if extra:
            carrier = max(dropped, key=lambda i: score[i])
            weights[carrier] = 0
            weights[carrier, dropped] = score[dropped]
            out.append(carrier)
        return out, weights[out]

    return formula


def clusters(
    share: float, per: int, assign: str, combine: str, noise: float, seed: int
) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        signals, score, kept, _ = case
        n = len(score)
        dropped = sorted((i for i in range(n) if i not in kept), key=lambda i: -score[i])
        pool = dropped[: min(int(share * len(dropped)) + 1, len(dropped))]
        count = min(len(pool) // per + 1, len(pool))
        x = signals["features"][pool]
        far = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2) / x.shape[1])
        density = np.array([np.exp(-np.mean(np.sort(row)[:count] ** 2)) for row in far])
        density = density + noise * density_noise(seed, len(pool)).numpy()
        gap = [
            min((far[i, j] for j in range(len(pool)) if density[j] > density[i]), default=far.max())
            for i in range(len(pool))
        ]
        centres = np.argsort(-density * np.array(gap), kind="stable")[:count]
        close = unit(x) @ unit(x).T if assign == "cosine" else -far
        home = [i if i in centres else max(centres, key=lambda c, i=i: close[i, c]) for i in range(len(pool))]
        weights, out = np.eye(n), list(kept)
        for c in centres:
            members = [pool[i] for i in range(len(pool)) if home[i] == c]
            weights[pool[c]] = 0
            weights[pool[c], members] = 1 if combine == "sum" else 1 / (len(members) + 1e-6)
            out.append(pool[c])
        return out, weights[out]

    return formula


def gate(tau: float) -> Callable[[Case], Answer]:
    def formula(case: Case) -> Answer:
        signals, score, kept, _ = case
        rows = signals["attention_text"][:, signals["text_mask"]]
        return plain(kept if rows.mean(0).sum(1).mean() >= tau else [], len(score))

    return formula


STEPS: list[tuple[str, dict[str, Any], Callable[[Case], Answer]]] = [
    ("drop_all", {}, lambda case: plain([], len(case[1]))),
    ("recover_every", {"interval": 3}, recover(3)),
    ("recover_every", {"interval": 1}, recover(1)),
    *(("add_grid", {"divide": d, "start": a, "skip_last": k, "order": o}, grid(d, a, k, o))
      for d in (1, 2) for a in ("first", "half") for k in (False, True) for o in ("index", "appended")),
    ("grid_recycle", {"cell": 1.5}, recycle_cells(1.5)),
    ("grid_recycle", {"cell": 2.0}, recycle_cells(2.0)),
    *(("merge_nearest", {"signal": g, "targets": t, "combine": c, "carry": y, "order": o},
       nearest(g, t, c, y, o))
      for g, y in (("keys", True), ("features", False)) for t in ("kept", "unprotected", "protected")
      for c in ("mean", "size_mean", "add_mean") for o in ("index", "protected_first", "matched")),
    *(("neighbour_sum", {"neighbours": k, "combine": c, "extra": e, "order": o}, enrich(k, c, e, o))
      for k in (2, 40) for c in ("average", "sum") for e in (False, True) for o in ("index", "score")),
    *(("recycle_clusters", {"share": h, "per_cluster": p, "assign": a, "combine": c, "noise": s, "seed": 3},
       clusters(h, p, a, c, s, 3))
      for h, p in ((0.5, 2), (1.0, 3)) for a in ("cosine", "l2") for c in ("sum", "mean")
      for s in (0.0, 0.5)),
    ("relevance_gate", {"tau": 0.05}, gate(0.05)),
    ("relevance_gate", {"tau": 0.95}, gate(0.95)),
]  # fmt: skip


def chosen(signals: Signals, score: torch.Tensor, k: tuple[int, ...]) -> Selection:
    """The best `k` tokens, the better half of them protected."""
    counts = torch.tensor(k)
    problem = SubsetProblem.build(
        "top_k",
        counts,
        unary=score,
        mask=signals.mask,
        protected=keep_top(score, counts // 2, mask=signals.mask),
        counts=k,
    )
    solution = StableTopK().solve(problem)
    return Selection(solution.keep, k, score, solution=solution)


@pytest.mark.parametrize(
    ("name", "params", "formula"), STEPS, ids=[f"{s[0]}-{i}" for i, s in enumerate(STEPS)]
)
def test_steps_are_their_loops(name: str, params: dict, formula: Callable[[Case], Answer]) -> None:
    step = registry("steps").get(name).from_spec(params)
    k = (6, 4)
    signals = cases.make_signals(step.needs | {"features"}, tokens=18, text=4, lengths=LENGTHS, seed=2)
    if "group" in signals:  # two crops that share their cells
        signals = cases.with_tensors(signals, {"group": (torch.arange(18) % 2).expand(2, -1).clone()})
    score = torch.rand(2, 18, generator=torch.Generator().manual_seed(1)) + 0.05
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        given = cases.fill_out(score.gather(1, old.clamp_min(0)), moved.mask, fill=fill)
        before = chosen(moved, given, k)
        out = step(before, moved.view(step.needs))
        if out.counts is before.counts:  # as a pruner does
            out = replace(out, counts=tuple(step.count(c, m) for c, m in zip(k, LENGTHS, strict=True)))
        order = out.index()
        for b, n in enumerate(LENGTHS):
            here = (old[b] >= 0).nonzero().squeeze(1)
            alone = cases.sample_alone(signals, b)
            data = {x: alone[x][0].double().numpy() if alone[x].is_floating_point() else alone[x][0].numpy()
                    for x in alone}  # fmt: skip
            kept = old[b, before.keep[b]].tolist()
            protected = old[b, before.solution.problem.protected[b]].tolist()
            want, weights = formula((data, score[b, :n].double().numpy(), kept, protected))
            live = int(out.keep[b].sum())
            got = order[b, :live]
            assert old[b, got].tolist() == want, f"{fill}, sample {b}"
            merge = torch.eye(moved.tokens) if out.merge is None else out.merge[b]
            np.testing.assert_allclose(
                merge[got][:, here].numpy(), weights.reshape(live, n), rtol=1e-4, atol=1e-6, err_msg=fill
            )
            assert out.known_counts[b] == live


def test_sizes_of_merged_tokens_add_up_what_they_stand_for() -> None:
    step = registry("steps").get("merge_nearest")(signal="features", combine="size_mean", carry=True)
    signals = cases.make_signals(step.needs, tokens=12, lengths=(12, 8))
    before = chosen(signals, torch.rand(2, 12), (5, 3))
    out = step(before, signals.view(step.needs))
    for b in range(2):
        for t in out.keep[b].nonzero().squeeze(1):
            members = out.merge[b, t] > 0
            assert float(out.size[b, t]) == float(signals["size"][b, members].sum())


def test_a_second_merge_is_of_what_the_first_made() -> None:
    step = registry("steps").get("merge_nearest")(signal="features", targets="kept")
    signals = cases.make_signals({"features"}, tokens=10, batch=1)
    both = Signals({"features": signals["features"]}, torch.ones(1, 10, dtype=torch.bool))
    first = step(chosen(both, torch.rand(1, 10), (6,)), both.view(step.needs))
    smaller = replace(first, keep=first.keep & (first.keep.cumsum(1) <= 3), counts=(3,))
    second = step(smaller, both.view(step.needs))
    alone = step(replace(smaller, merge=None), both.view(step.needs))
    torch.testing.assert_close(second.merge, alone.merge @ first.merge)


def test_the_gate_keeps_at_its_bound() -> None:
    step = registry("steps").get("relevance_gate")(tau=0.25)
    rows = torch.full((2, 1, 2, 4), 0.0625)
    rows[1] -= 1e-4
    signals = Signals({"attention_text": rows, "text_mask": torch.tensor([[True, False], [True, True]])})
    out = step(chosen(signals, torch.rand(2, 4), (2, 2)), signals.view(step.needs))
    assert out.keep.sum(1).tolist() == [2, 0]
