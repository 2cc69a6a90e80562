"""DivPrune, DART, CDPruner, SAINT and VisPruner against what their released code returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fair import Check, cosines, no_worse, same_worth, tie_of
from golden_files import GoldenCase
from golden_zoo import Ledger, run, tensor

from pruneopt.parts.costs.cosine_distance import CosineDistance
from pruneopt.parts.costs.text_pivots import TextPivots
from pruneopt.parts.scores.key_norm import KeyNorm
from pruneopt.parts.scores.twin_redundancy import odd_cosines
from pruneopt.parts.solvers.bipartite_elimination import BipartiteElimination
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@pytest.mark.golden("divprune")
def test_divprune(case: GoldenCase) -> None:
    book = Ledger(case)
    prompt = "in.embeds" in case
    common = case.param["common"]
    first = common["sys_len"] if prompt else 0
    x = tensor(case["in.embeds"])[0, first : first + common["N"]] if prompt else tensor(case["in.x"])
    distance = 1 - cosines(x)
    for variant, options in book.variants.items():
        chosen = run("divprune", {"features": x[None]}, [f"budget.keep={options['ratio']}"])
        kept, order = chosen.indices[0], chosen.solution.order[0]
        if prompt:
            length = case["in.embeds"].shape[1]
            outside = [i for i in range(length) if not first <= i < first + common["N"]]
            book.same(variant, "keep_indexs", sorted(outside + (kept + first).tolist()))
            continue
        book.same(variant, "order", order, tie_of(lambda _, picked: farthest(distance, picked), 1e-6))
        book.same(variant, "idx", kept, no_worse(lambda _, index: spread(distance, index), 1e-6))
        steps = [farthest(distance, order[:t].tolist())[order[t]] for t in range(len(order))]
        shared = int((book.want(variant, "order") == order.numpy()).cumprod().sum())
        until_the_tie = first_ones(shared + 1)
        book.close(variant, "maxmin", steps, floor=3e-6, after=("order",), fair=until_the_tie)
        if book.has(variant, "distance"):
            book.close(variant, "distance", CosineDistance()(Signals({"features": x[None]}))[0])
    book.close_book()


def farthest(distance: np.ndarray, picked: list[int]) -> np.ndarray:
    """`[N]` distance to the nearest picked token; before the first pick, to the nearest other token."""
    if picked:
        return distance[picked].min(0)
    return (distance + np.diag(np.full(len(distance), np.inf))).min(0)


def spread(distance: np.ndarray, index: np.ndarray) -> float:
    """Least distance among the tokens of `index`: what max-min dispersion maximises."""
    block = distance[np.ix_(index, index)]
    return float((block + np.diag(np.full(len(block), np.inf))).min())


def first_ones(count: int) -> Check:
    def check(want: np.ndarray, got: np.ndarray) -> None:
        np.testing.assert_allclose(got[:count], want[:count], rtol=0, atol=3e-6)

    return check


@pytest.mark.golden("dart")
def test_dart(case: GoldenCase) -> None:
    book, common = Ledger(case), case.param["common"]
    first, tokens = common["start"], common["N"]
    span, tail = slice(first, first + tokens), slice(first + tokens, None)
    hidden, keys = tensor(case["in.hidden"]), tensor(case["in.keys"])
    signals = {
        "hidden_normed": hidden[:, span],
        "text_hidden_normed": hidden[:, tail],
        "keys": keys[:, :, span],
        "text_keys": keys[:, :, tail],
        "text_mask": torch.ones(1, common["n_text"], dtype=torch.bool),
    }
    view = Signals(signals)
    rows = np.unique(hidden[0, span].numpy(), axis=0, return_inverse=True)[1].ravel()
    alike = same_worth(rows, slack=0)  # the same rows, whichever of equal ones
    for variant, options in book.variants.items():
        image, text = options["pivot_image"], options["pivot_text"]
        chosen = run(
            "dart/release",
            signals,
            [
                f"budget.keep={options['keep']}",
                f"budget.rule.pivots={image}",
                f"budget.rule.text_pivots={text}",
                f"solver.pivots={image}",
                f"solver.text_pivots={text}",
                f"solver.prefix={first}",
                f"problem.anchors.text.count={text}",
            ],
        )
        kept = chosen.indices[0]
        book.same(variant, "idx", kept, alike)
        book.same(variant, "token_topk", (len(kept) - image) // (image + text))
        book.close(variant, "image_L1", KeyNorm(p=1.0)(view)[0])
        norm = TextPivots(count=text).strength(view)[0]
        book.close(variant, "text_L1", norm)
        book.same(variant, "pivot_image", chosen.solution.stats["pivots"][0] + first)
        pivots = TextPivots(count=text)(view)[0].isfinite().any(1).nonzero().squeeze(1)
        pivots = pivots[norm[pivots].argsort(descending=True, stable=True)]
        book.same(variant, "pivot_text", pivots + first + tokens)
        again = ("idx_abs", "raw_order")
        book.leave_out(variant, *again, why="idx again, counted in the prompt, and in the order of a set")
        book.leave_out(variant, "pivot_visit_order", why="decides idx, and is seen through it")
        book.leave_out(variant, "lightcompress_same", why="a remark on the reference, no output of it")
    book.close_book()


@pytest.mark.golden("cdpruner")
def test_cdpruner(case: GoldenCase) -> None:
    book = Ledger(case)
    features, image = tensor(case["in.features"]), tensor(case["in.image_embeds"])
    text = tensor(case["in.text_embeds"])[None]
    for variant, options in book.variants.items():
        crops = 1 if options.get("batch1") else len(features)
        tokens = features.shape[1]
        signals = {
            "features": features[:crops].flatten(0, 1)[None],
            "clip_features": image[:crops].flatten(0, 1)[None],
            "clip_text": text,
            "group": torch.arange(crops).repeat_interleave(tokens)[None],
        }
        chosen = run("cdpruner/release", signals, [f"budget.keep={options['T']}"])
        keep, order = chosen.keep.view(crops, tokens), chosen.solution.order
        relevance = chosen.importance.view(crops, tokens)
        book.close(variant, "relevance", relevance)
        kernels = [
            cosines(x) * np.outer(q, q) for x, q in zip(features[:crops], relevance.double(), strict=True)
        ]
        step = tie_of(lambda b, picked, k=kernels: variance(k[b], picked), 1e-6)
        book.leave_out(variant, "has_nan", why="read just below")
        if bool(book.want(variant, "has_nan")):
            # the reference ran out of rank, lists tokens twice and keeps too few; ours keeps the count
            rank = int(book.want(variant, "n_unique")[0]) * 3 // 5
            assert rank < int(chosen.solution.stats["rank"][0])
            step(book.want(variant, "order")[:, :rank], order[:, :rank].numpy())
            assert keep.sum(1).tolist() == [options["T"]] * crops
            book.leave_out(
                variant, "order", "idx", "mask", "n_unique", "logdet", why="compared up to its rank"
            )
            continue
        book.same(variant, "order", order, step)
        worth = no_worse(
            lambda b, index, k=kernels: float(np.linalg.slogdet(k[b][np.ix_(index, index)])[1]), 0.1
        )
        index = torch.stack([row.nonzero().squeeze(1) for row in keep])
        book.same(variant, "idx", index, worth)
        book.leave_out(variant, "mask", why="idx again, as a mask")
        book.same(variant, "n_unique", keep.sum(1))
        if book.has(variant, "logdet"):
            book.close(
                variant, "logdet", chosen.solution.value, floor=1e-3, after=("idx",), fair=rows_near(0.1)
            )
    book.close_book()


def variance(kernel: np.ndarray, picked: list[int]) -> np.ndarray:
    """`[N]` variance of every token given the picked ones: what greedy determinant maximisation looks at."""
    if not picked:
        return kernel.diagonal()
    cross = kernel[:, picked]
    return kernel.diagonal() - (cross * np.linalg.solve(kernel[np.ix_(picked, picked)], cross.T).T).sum(1)


def rows_near(slack: float) -> Check:
    def check(want: np.ndarray, got: np.ndarray) -> None:
        assert (got >= want - slack).all()

    return check


@pytest.mark.golden("saint")
def test_saint(case: GoldenCase) -> None:
    book = Ledger(case)
    keys = tensor(case["in.keys"])[:, 1:]
    for variant, options in book.variants.items():
        if options["mode"] == "clip_iter":
            chosen = run(
                "saint/encoder_release",
                {"encoder_keys@19": keys[:1, None]},
                [f"budget.keep={options['keep_num'] - 1}", f"solver.divisor={options['r']}"],
            )
            likeness = cosines(keys[0])
            fair = no_worse(lambda _, index, c=likeness: -float(c[np.ix_(index, index)].mean()), 1e-4)
            book.same(variant, "idx", chosen.indices[0], fair)
            book.leave_out(variant, "tokens_with_cls", why="idx again, after the class token")
            continue
        rows = keys[:1] if options.get("b1") else keys
        crops, tokens = rows.shape[:2]
        signals = {
            "keys": rows.flatten(0, 1)[None, None],
            "group": torch.arange(crops).repeat_interleave(tokens)[None],
        }
        threshold = options["thr"]
        overrides = [
            "insertion.layer=8",
            "budget.scope=group",
            f"budget.rule.threshold={threshold}",
            f"budget.rule.degree={options['K']}",
            f"problem.scores.redundancy.threshold={threshold}",
            f"problem.scores.redundancy.gamma={options['gamma']}",
        ]
        chosen = run("saint/release", signals, overrides)
        compare_saint(book, variant, options, chosen, rows)
    book.close_book()


def compare_saint(book: Ledger, variant: str, options: dict, chosen: Selection, rows: torch.Tensor) -> None:
    crops, tokens = rows.shape[:2]
    score = chosen.importance.view(crops, tokens)
    index = torch.stack([row.nonzero().squeeze(1) for row in chosen.keep.view(crops, tokens)])
    if options["mode"] != "llm":
        with_cls = torch.cat([torch.zeros(crops, 1, dtype=torch.int64), index + 1], 1)
        beside = torch.cat([torch.zeros(crops, 1), score], 1)
        book.same(variant, "idx_with_cls", with_cls, same_worth(beside))
        book.leave_out(variant, "idx_order_with_cls", why="idx again, even survivors by score, then odd")
        return
    book.same(variant, "r", tokens - index.shape[1])
    book.same(variant, "idx", index, same_worth(score))
    book.leave_out(variant, "idx_order", why="idx again, even survivors by final_scores, then odd")
    if index.shape[1] == tokens:  # nothing to drop: the reference returns early
        assert book.want(variant, "final_scores").size == 0
        book.leave_out(variant, "final_scores", "valid_counts", why="empty where nothing is dropped")
        return
    book.close(variant, "final_scores", -score[:, 0::2])
    cosine, odd = odd_cosines(Signals({"keys": rows[:, None]}), "keys")
    book.same(variant, "valid_counts", ((cosine >= options["thr"]) & odd).sum(2)[:, 0::2])


@pytest.mark.golden("vispruner")
def test_vispruner(case: GoldenCase) -> None:
    book = Ledger(case)
    features, attention = tensor(case["in.features"]), tensor(case["in.cls_attn"])
    signals = {"encoder_features": features, "cls_attention": attention}
    distance = [1 - cosines(x) for x in features]
    for variant, options in book.variants.items():
        overrides = [f"budget.keep={options['T']}", f"problem.protect.share={options['r']}"]
        chosen = run("vispruner", signals, overrides)
        important = int(options["T"] * options["r"])
        book.close(variant, "score", chosen.importance)
        assert chosen.known_counts == (options["T"],) * len(features)
        order = chosen.solution.order
        protected = chosen.solution.problem.protected
        assert bool(protected.gather(1, order[:, :important]).all()) and int(protected.sum()) == 2 * important
        by_score = chosen.importance.gather(1, order[:, :important]).argsort(
            dim=1, descending=True, stable=True
        )
        book.order(variant, "important", order.gather(1, by_score), chosen.importance)
        apart = no_worse(lambda b, index: log_nearest(distance[b], index), 0.15)  # chaos; see below
        book.same(variant, "diverse", order[:, important:], apart)
        book.leave_out(variant, "mask", "idx", why="the important and the diverse tokens together")
        if book.has(variant, "residual_trace"):
            check_trace(book, variant, options, features)
    book.close_book()


def log_nearest(distance: np.ndarray, index: np.ndarray) -> float:
    """Log of the mean distance to the nearest other kept token.

    Rounding changes the walk, and with it this value by a few percent; random tokens lose a third and more.
    """
    if len(index) < 2:
        return 0.0
    return float(np.log(farthest(distance[np.ix_(index, index)], []).mean()))


def check_trace(book: Ledger, variant: str, options: dict, features: torch.Tensor) -> None:
    """Every iteration of the reference, started from its own list, ends in its next list up to ties.

    Ties are cosines that float32 cannot tell apart: the dropped tokens are as alike to an odd one as those
    that the reference dropped, the surviving even ones are listed by the same likeness, odd ones follow.
    """
    trace = tensor(book.want(variant, "residual_trace"))
    goal = torch.full((trace.shape[1],), options["T"] - int(options["T"] * options["r"]))
    product = CosineDistance(signal="encoder_features")(Signals({"encoder_features": features}))
    witness = [1 - cosines(x) for x in features]
    for t in range(len(trace) - 1):
        length, after = ((trace[s] >= 0).sum(1) for s in (t, t + 1))
        start = trace[t, :, : int(length.max())].clamp_min(0)
        got, left = BipartiteElimination().round(start, length, goal=goal, pairwise=product)
        assert left.tolist() == after.tolist()
        for b in range(len(got)):
            where = f"{book.case.name} {variant} iteration {t} sample {b}"
            ours, theirs = (row[b, : int(left[b])].numpy() for row in (got, trace[t + 1]))
            before = start[b, : int(length[b])].numpy()
            odd, stay = before[1::2], int(left[b]) - len(before) // 2
            np.testing.assert_array_equal(ours[stay:], odd, err_msg=where)
            np.testing.assert_array_equal(theirs[stay:], odd, err_msg=where)
            near = witness[b][:, odd].min(1)
            assert len(np.unique(ours)) == len(ours) and set(ours) <= set(before), where
            np.testing.assert_allclose(
                near[ours[:stay]], near[theirs[:stay]], rtol=0, atol=1e-6, err_msg=where
            )
    book.leave_out(variant, "residual_trace", why="compared iteration by iteration just above")
