"""Values of every term and budget rule against formulas in NumPy, sample by sample, away from the defaults.

Each case runs on a ragged batch whose padding stands between tokens and lies below, between and above the
real values; the formula sees one sample without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pruneopt.registry import registry
from pruneopt.testing import cases

Arrays = dict[str, np.ndarray]
Formula = Callable[[Arrays], np.ndarray]
LENGTHS = (12, 7)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def joined(heads: np.ndarray) -> np.ndarray:
    """`[H,N,d]` to `[N,H d]`."""
    return np.concatenate(list(heads), 1)


def reduce(rows: np.ndarray, how: str) -> np.ndarray:
    return {"mean": rows.mean(0), "max": rows.max(0), "sum": rows.sum(0)}[how]


def text_row(name: str, heads: str) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        rows = np.stack([reduce(s[name][:, t], heads) for t in np.flatnonzero(s["text_mask"])])
        return rows.mean(0)

    return formula


def all_rows(prefix: str, heads: str) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        text = [reduce(s[f"{prefix}_text"][:, t], heads) for t in np.flatnonzero(s["text_mask"])]
        visual = [reduce(s[f"{prefix}_visual"][:, i], heads) for i in range(s[f"{prefix}_visual"].shape[1])]
        return np.mean(text + visual, axis=0)

    return formula


def similarity(layer: int, heads: str, output: str) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        q, k = s[f"cls_query@{layer}"], s[f"encoder_keys@{layer}"]
        own = s.get(f"cls_key@{layer}")
        if heads == "joined":
            q, k = q.reshape(1, -1), joined(k)[None]
            own = None if own is None else own.reshape(1, -1)
        out = []
        for h in range(len(q)):
            logits = k[h] @ q[h] / np.sqrt(q.shape[1])
            if output == "probs":
                assert own is not None
                logits = softmax(np.r_[own[h] @ q[h] / np.sqrt(q.shape[1]), logits], 0)[1:]
            out.append(logits)
        return np.mean(out, 0)

    return formula


def relevance(name: str, threshold: float) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        attention = s[name].mean(0)
        received = attention.mean(0)
        chosen = [k for k, r in enumerate(received) if r > threshold * received.mean()]
        return attention[chosen or range(len(received))].mean(0)

    return formula


def walk(tau: float, rounds: int, damping: float) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        out = []
        for logits in s["attention_logits"].astype(np.float64):
            step = softmax(logits / tau, 1)
            mass = np.full(len(step), 1 / len(step))
            for _ in range(rounds):
                mass = damping / len(step) + (1 - damping) * mass @ step
            out.append(mass)
        return np.sqrt(np.mean(np.square(out), 0))[s["visual_index"]]

    return formula


def entropy(mean: float, std: float) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        out = []
        for patch in s["patches"]:
            pixel = np.floor(np.clip(patch.astype(np.float32) * std + mean, 0, 1) * 255)
            grey = np.rint((pixel * np.float32(0.3333)).sum(0)).astype(int)
            share = np.unique(grey, return_counts=True)[1] / grey.size
            out.append(-(share * np.log2(share)).sum())
        return np.array(out)

    return formula


def raters_of(s: Arrays, strict: bool) -> np.ndarray:
    text = np.flatnonzero(s["text_mask"])
    weight = softmax(s["start_embeddings"][s["start_mask"]] @ s["text_embeddings"][text].T, 1).mean(0)
    return text[weight > weight.mean() if strict else weight >= weight.mean()]


def raters(strict: bool, top: int, base: float, width: int) -> Formula:
    def turned(place: float) -> np.ndarray:
        """A vector of ones, rotated."""
        angle = place * base ** (-np.arange(0, width, 2) / width)
        return np.r_[np.cos(angle) - np.sin(angle), np.sin(angle) + np.cos(angle)]

    def formula(s: Arrays) -> np.ndarray:
        chosen, heads = raters_of(s, strict), []
        for head in s["attention_text"]:
            rows = head[chosen].copy()
            if base:
                for i, t in enumerate(chosen):
                    for j in range(rows.shape[1]):
                        bias = turned(s["text_index"][t]) @ turned(s["visual_index"][j]) / np.sqrt(width)
                        rows[i, j] /= bias
            heads.append(rows.sum(0))
        heads.sort(key=lambda row: -row.sum())
        return np.mean(heads[: top or None], 0) / len(chosen)

    return formula


def cosine_to_text(query: str, sign: int, quality: bool) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        text = s["text_features"][s["text_mask"]]
        row = {"last": unit(text[-1]), "mean": unit(text.mean(0)), "each": unit(text).mean(0)}[query]
        score = sign * unit(s["features"]) @ row
        return (score - score.min() + 1e-6) / (score.max() - score.min()) if quality else score

    return formula


def text_distance(power: int) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        text = s["text_embeddings"][s["text_mask"]]
        return np.array([-np.mean(np.linalg.norm(x - text, axis=1) ** power) for x in s["features"]])

    return formula


def pivots(count: int, p: float) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        norm = np.linalg.norm(joined(s["text_keys"]), ord=p, axis=1)
        norm[~s["text_mask"]] = -1
        best = np.argsort(-norm, kind="stable")[: min(count, int(s["text_mask"].sum()))]
        distance = 1 - unit(s["text_hidden_normed"]) @ unit(s["hidden_normed"]).T
        return np.where(np.isin(np.arange(len(norm)), best)[:, None], distance, np.inf)

    return formula


def centre(s: Arrays) -> np.ndarray:
    return np.hypot(*(s["xy"] - (s["grid"] - 1) / 2).T)


def gaussian(sigma: float) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        d = s["xy"][:, None] - s["xy"][None]
        return 1 - np.exp(-(d**2).sum(2) / (2 * sigma**2))

    return formula


def squares(source: str, target: str) -> Formula:
    return lambda s: np.array([[((a - b) ** 2).sum() for b in s[target]] for a in s[source]])


def windows(columns: int, rows: int) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        x, y = (s["xy"] * [columns, rows] // s["grid"]).T
        return s["group"] * columns * rows + y * columns + x

    return formula


def prototypes(reduce: str) -> Formula:
    def formula(s: Arrays) -> np.ndarray:
        cosine = unit(s["features"]) @ unit(BOOK.numpy()).T
        share = softmax(cosine, 1)
        both = share * softmax(cosine, 0)
        return -{"max": cosine, "single_softmax": share, "double_softmax": both}[reduce].max(1)

    return formula


BOOK = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
K = "keys"
VALUES: list[tuple[str, str, dict[str, Any], Formula]] = [
    ("costs", "central_distance", {}, centre),
    ("costs", "cosine_distance", {"signal": K}, lambda s: 1 - unit(joined(s[K])) @ unit(joined(s[K])).T),
    ("costs", "cosine_distance", {"signal": K, "heads": "mean"},
     lambda s: 1 - unit(s[K].mean(0)) @ unit(s[K].mean(0)).T),
    ("costs", "feature_sq_l2", {"source_signal": "attn_out", "target_signal": "features"},
     squares("attn_out", "features")),
    ("costs", "spatial_gaussian", {"sigma": 1.7}, gaussian(1.7)),
    ("costs", "text_pivots", {"count": 2, "p": 2.0}, pivots(2, 2.0)),
    ("costs", "text_pivots", {"count": 1, "p": 1.0}, pivots(1, 1.0)),
    ("kernels", "cosine", {"signal": K}, lambda s: unit(joined(s[K])) @ unit(joined(s[K])).T),
    ("kernels", "cosine", {"signal": K, "heads": "mean"},
     lambda s: unit(s[K].mean(0)) @ unit(s[K].mean(0)).T),
    ("marginals", "token_norm", {"signal": "features"},
     lambda s: np.linalg.norm(s["features"], axis=1) / np.linalg.norm(s["features"], axis=1).sum()),
    ("marginals", "uniform", {}, lambda s: np.full(len(s["xy"]), 1 / len(s["xy"]))),
    ("scores", "attention_row", {"heads": "max"}, lambda s: s["attention_last"].max(0)),
    ("scores", "attention_row", {"ahead": True, "heads": "sum"}, lambda s: s["lookahead_last"].sum(0)),
    ("scores", "attention_row", {"query": "text", "heads": "sum"}, text_row("attention_text", "sum")),
    ("scores", "attention_row", {"query": "text", "ahead": True, "heads": "max"},
     text_row("lookahead_text", "max")),
    ("scores", "attention_row", {"query": "visual", "heads": "max"},
     lambda s: s["attention_visual"].max(0).mean(0)),
    ("scores", "attention_row", {"query": "visual", "ahead": True},
     lambda s: s["lookahead_visual"].mean(0).mean(0)),
    ("scores", "attention_row", {"query": "all", "heads": "max"}, all_rows("attention", "max")),
    ("scores", "attention_row", {"query": "all", "ahead": True}, all_rows("lookahead", "mean")),
    ("scores", "carried", {}, lambda s: s["importance"]),
    *(("scores", "cls_attention", {"layer": 2, "heads": h}, lambda s, h=h: reduce(s["cls_attention@2"], h))
      for h in ("mean", "sum", "max")),
    *(("scores", "cls_similarity", {"layer": -2, "heads": h, "output": o}, similarity(-2, h, o))
      for h in ("split", "joined") for o in ("probs", "logits")),
    ("scores", "context_relevance", {"threshold": 1.05, "layer": 3}, relevance("encoder_attention@3", 1.05)),
    ("scores", "context_relevance", {"threshold": 0.9}, relevance("encoder_attention", 0.9)),
    ("scores", "context_relevance", {"threshold": 50.0}, relevance("encoder_attention", 50.0)),
    ("scores", "every_kth", {"stride": 3}, lambda s: np.arange(len(s["xy"])) % 3 == 2),
    ("scores", "key_norm", {"p": 1.0, "heads": "joined"}, lambda s: np.abs(joined(s[K])).sum(1)),
    ("scores", "key_norm", {"p": 3.0, "heads": "mean", "sign": -1},
     lambda s: -(np.abs(s[K].mean(0)) ** 3).sum(1) ** (1 / 3)),
    ("scores", "mean_unlikeness", {"signal": "features"},
     lambda s: -unit(s["features"]) @ unit(s["features"].mean(0))),
    ("scores", "pagerank", {"tau": 0.7, "rounds": 3, "damping": 0.25}, walk(0.7, 3, 0.25)),
    ("scores", "pagerank", {"tau": 2.0, "rounds": 1, "damping": 0.0}, walk(2.0, 1, 0.0)),
    ("scores", "patch_entropy", {"mean": 0.4, "std": 0.2}, entropy(0.4, 0.2)),
    ("scores", "patch_entropy", {"mean": 0.0, "std": 1.0}, entropy(0.0, 1.0)),
    *(("scores", "prototype", {"reduce": r}, prototypes(r))
      for r in ("max", "double_softmax", "single_softmax")),
    ("scores", "rater_attention", {"strict": True}, raters(True, 0, 0, 0)),
    ("scores", "rater_attention", {"strict": False, "top_heads": 1}, raters(False, 1, 0, 0)),
    ("scores", "rater_attention", {"rope_base": 50.0, "head_dim": 6}, raters(False, 0, 50.0, 6)),
    ("scores", "received_attention", {"layer": 1}, lambda s: s["received_attention@1"].mean(0)),
    *(("scores", "text_cosine", {"query": q, "sign": g, "quality": u}, cosine_to_text(q, g, u))
      for q in ("last", "mean", "each") for g in (1, -1) for u in (False, True)),
    ("scores", "text_distance", {"power": 1}, text_distance(1)),
    ("scores", "text_distance", {"power": 2}, text_distance(2)),
    ("scores", "token_norm", {"signal": "hidden_in"}, lambda s: np.linalg.norm(s["hidden_in"], axis=1)),
    ("scores", "transition", {"layers": (0, 2), "absolute": False},
     lambda s: s["transition@0"] + s["transition@2"]),
    ("scores", "transition", {"layers": (1,)}, lambda s: s["transition_abs@1"]),
    ("scores", "window", {"columns": 3, "rows": 2}, windows(3, 2)),
]  # fmt: skip


def arrays(signals) -> Arrays:
    """One sample without its batch axis."""
    out = {name: signals[name][0].numpy() for name in signals}
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in out.items()}


@pytest.fixture(scope="module")
def codebook(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("book") / "book.safetensors"
    save_file({"prototypes": BOOK}, path)
    return str(path)


@pytest.mark.parametrize(
    ("group", "name", "params", "formula"), VALUES, ids=[f"{v[1]}-{i}" for i, v in enumerate(VALUES)]
)
def test_terms_are_their_formulas(
    group: str, name: str, params: dict, formula: Formula, codebook: str
) -> None:
    if name == "prototype":
        params = {**params, "codebook": codebook}
    part = registry(group).get(name).from_spec(params)
    signals = cases.make_signals(part.needs, tokens=14, text=5, lengths=LENGTHS, seed=11)
    if "group" in signals:
        signals = cases.with_tensors(signals, {"group": (torch.arange(14) % 2).expand(2, -1).clone()})
    wanted = [formula(arrays(cases.sample_alone(signals, b))) for b in range(len(LENGTHS))]
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        out = part(moved.view(part.needs))
        for b, want in enumerate(wanted):
            here = (old[b] >= 0).nonzero().squeeze(1)
            got = out[b][..., here] if out.dim() == 2 or want.shape[0] != len(here) else out[b][here][:, here]
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6, err_msg=f"{name} {fill}")


def test_quality_is_scaled_over_the_crops_of_a_sample() -> None:
    from pruneopt.signals import Signals

    part = registry("scores").get("text_cosine")(quality=True)
    signals = cases.make_signals(part.needs, batch=3, tokens=6)
    crops = Signals({n: signals[n] for n in signals}, sample=torch.tensor([0, 1, 0]))
    plain = registry("scores").get("text_cosine")()(signals)
    pool = plain[[0, 2]]
    want = (plain[0] - pool.min() + 1e-6) / (pool.max() - pool.min())
    torch.testing.assert_close(part(crops)[0], want)
    torch.testing.assert_close(part(crops)[1], part(signals)[1])


def test_random_ranks_follow_the_seed_and_nothing_else() -> None:
    make = registry("scores").get("random")
    signals = cases.make_signals({"features"}, batch=2, tokens=40)
    for seed in (0, 7):
        want = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
        assert torch.equal(make(seed=seed)(signals)[1], want)
    short = cases.make_signals({"features"}, batch=1, tokens=25)
    assert torch.equal(make(seed=7)(short)[0], make(seed=7)(signals)[0, :25])


def test_raters_at_the_mean_and_text_that_is_not_there() -> None:
    """Equal words are all at the mean, which strictness excludes; a padded word must not move the mean."""
    make = registry("scores").get("rater_attention")
    signals = cases.make_signals(make().needs, batch=1, text=4, seed=1000)
    real = signals["text_mask"][0]
    assert real.tolist() == [True, True, True, False]
    same = torch.zeros_like(signals["text_embeddings"])
    same[:, 3] = 5.0
    equal = cases.with_tensors(signals, {"text_embeddings": same})
    for strict, wanted in ((False, [True, True, True, False]), (True, [False] * 4)):
        chosen, weight = make(strict=strict).raters(equal)
        assert chosen[0].tolist() == wanted
        torch.testing.assert_close(weight[0], torch.tensor([1, 1, 1, 0]) / 3)


def test_the_strength_of_a_text_pivot_is_its_key_norm() -> None:
    make = registry("costs").get("text_pivots")
    signals = cases.make_signals(make().needs, batch=2, text=5)
    keys = signals["text_keys"].transpose(1, 2).flatten(2).numpy()
    for p in (1.0, 2.0, 3.0):
        got = make(p=p).strength(signals)
        np.testing.assert_allclose(got, (np.abs(keys) ** p).sum(2) ** (1 / p), rtol=1e-5)
    spiky = torch.zeros(1, 1, 2, 4)
    spiky[0, 0, 0, 0], spiky[0, 0, 1] = 3.0, 1.0  # the larger L2 norm, and the larger L1 norm
    two = cases.make_signals(make().needs, batch=1, text=2)
    two = cases.with_tensors(two, {"text_keys": spiky, "text_mask": torch.ones(1, 2, dtype=torch.bool)})
    for p, pivot in ((1.0, 1), (2.0, 0)):
        assert make(count=1, p=p)(two).isfinite().any(2)[0].tolist() == [pivot == 0, pivot == 1]


# -- budget rules ---------------------------------------------------------------------------------------


def outliers(factor: float, cap: float) -> Callable[[Arrays, int, np.ndarray], int]:
    def formula(s: Arrays, k: int, score: np.ndarray) -> int:
        low, high = np.quantile(score, [0.25, 0.75])
        found = int((score > high + factor * (high - low)).sum())
        return max(1, min(found, int(len(score) * cap)))

    return formula


def rank_rule(scale: float, bias: float, strict: bool) -> Callable[[Arrays, int, np.ndarray], int]:
    def formula(s: Arrays, k: int, score: np.ndarray) -> int:
        rows = s["attention_text"].mean(0)[raters_of(s, strict)]
        n = len(score)
        return max(1, min(int(np.linalg.matrix_rank(rows.astype(np.float32)) * scale + bias), n - 1))

    return formula


def votes(threshold: float, degree: int) -> Callable[[Arrays, int, np.ndarray], int]:
    def formula(s: Arrays, k: int, score: np.ndarray) -> int:
        near = unit(s["features"]) @ unit(s["features"]).T
        n = len(near)
        twins = [sum(near[i, j] >= threshold for j in range(1, n, 2)) for i in range(0, n, 2)]
        return n - sum(t >= degree for t in twins)

    return formula


RULES: list[tuple[str, dict[str, Any], Callable[[Arrays, int, np.ndarray], int]]] = [
    ("attention_rank", {"scale": 1.5, "bias": 1.0, "strict": False}, rank_rule(1.5, 1.0, False)),
    ("attention_rank", {"scale": 2.0, "bias": 0.0, "strict": True}, rank_rule(2.0, 0.0, True)),
    ("attention_rank", {"scale": 100.0}, rank_rule(100.0, 0.0, True)),
    ("capped", {"spare": 4}, lambda s, k, score: max(1, min(k, len(score) - 4))),
    ("capped", {"spare": 40}, lambda s, k, score: 1),
    ("cell_allowance", {"cell": 1.5}, lambda s, k, score: max(1, k - int(len(score) / 1.5**2))),
    ("degree_vote", {"signal": "features", "threshold": 0.1, "degree": 2, "pool": False}, votes(0.1, 2)),
    ("degree_vote", {"signal": "features", "threshold": -0.2, "degree": 3, "pool": True}, votes(-0.2, 3)),
    ("iqr_outliers", {"factor": 0.2, "cap": 1.0}, outliers(0.2, 1.0)),
    ("iqr_outliers", {"factor": 0.0, "cap": 0.15}, outliers(0.0, 0.15)),
    ("pivot_quota", {"pivots": 2, "text_pivots": 1}, lambda s, k, score: min(2 + 3 * (k // 3), len(score))),
    ("pivot_quota", {"pivots": 3, "text_pivots": 0}, lambda s, k, score: min(3 + 3 * (k // 3), len(score))),
    ("score_threshold", {"bound": 0.5}, lambda s, k, score: max(1, int((score > 0.5).sum()))),
    ("score_threshold", {"bound": 9.0}, lambda s, k, score: 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "formula"), RULES, ids=[f"{r[0]}-{i}" for i, r in enumerate(RULES)]
)
@pytest.mark.parametrize("asked", [(9, 2), (5, 7)])
def test_rules_are_their_formulas(name: str, params: dict, formula: Callable, asked: tuple) -> None:
    rule = registry("budgets").get(name).from_spec(params)
    signals = cases.make_signals(rule.needs, tokens=14, text=5, lengths=LENGTHS, seed=5)
    score = torch.rand(2, 14, generator=torch.Generator().manual_seed(4))
    score[0, 3] = score[1, 2] = 0.5  # at the bound, which is not above it
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        given = cases.fill_out(score.gather(1, old.clamp_min(0)), moved.mask, fill=fill)
        got = rule(moved.view(rule.needs), torch.tensor(asked), importance=given).tolist()
        want = [
            formula(arrays(cases.sample_alone(signals, b)), asked[b], score[b, :n].double().numpy())
            for b, n in enumerate(LENGTHS)
        ]
        assert got == want, fill


def test_a_score_at_the_fence_is_no_outlier() -> None:
    rule = registry("budgets").get("iqr_outliers")()
    signals = cases.make_signals({"features"}, batch=2, tokens=6)
    score = torch.tensor([[1.0] * 6, [1.0] * 5 + [1.5]])
    assert rule(signals, torch.tensor([3, 3]), importance=score).tolist() == [1, 1]
    assert rule(signals, torch.tensor([3, 3]), importance=score.flip(0)).tolist() == [1, 1]
    two = torch.tensor([[1.0] * 10 + [2.0, 3.0]])
    assert rule(cases.make_signals({"features"}, batch=1), torch.tensor([3]), importance=two).tolist() == [2]


def test_a_pooled_vote_is_the_mean_over_the_crops_of_a_sample() -> None:
    from pruneopt.signals import Signals

    params = {"signal": "features", "threshold": 0.5, "degree": 2}
    rule, single = (registry("budgets").get("degree_vote")(**params, pool=p) for p in (True, False))
    signals = cases.make_signals({"features"}, batch=4, tokens=12, width=3, seed=8)
    crops = Signals({"features": signals["features"]}, sample=torch.tensor([0, 0, 1, 0]))
    k = torch.full((4,), 6)
    votes = 12 - single(crops, k, importance=None)
    assert len(set(votes.tolist())) > 1
    mean = int(votes[[0, 1, 3]].sum()) // 3
    assert rule(crops, k, importance=None).tolist() == [12 - mean, 12 - mean, 12 - int(votes[2]), 12 - mean]
