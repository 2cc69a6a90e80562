"""ToMe, AIM, VisionZip, PruMerge, VFlowOpt and GlobalCom2 against what their released code returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fair import Check, cosines, ranked, rows_in_common, same_worth
from golden_files import GoldenCase
from golden_zoo import Ledger, run, tensor

from pruneopt.grouping import split_groups
from pruneopt.parts.budgets.crop_allocation import CropAllocation
from pruneopt.parts.scores.pagerank import PageRank
from pruneopt.parts.scores.patch_entropy import PatchEntropy
from pruneopt.parts.scores.thumbnail_score import ThumbnailScore
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


def emitted(chosen: Selection, values: torch.Tensor) -> torch.Tensor:
    """`[B,K,D]` tokens that a selection hands on, in its order."""
    order = chosen.index()
    values = values if chosen.merge is None else chosen.merge @ values
    return values.gather(1, order[:, :, None].expand(-1, -1, values.shape[2]))


def slots(chosen: Selection) -> torch.Tensor:
    """`[B,N]` slot of the output in which every input token ended."""
    order = chosen.index()
    return chosen.merge.gather(1, order[:, :, None].expand(-1, -1, chosen.merge.shape[2])).argmax(1)


def matching(chosen: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a selection merged, in the terms of ToMe's code, `[B,*]` each.

    Numbers among even tokens of the merged ones, most alike first; numbers among odd tokens of what took
    them; and numbers among even tokens of those left, as emitted.
    """
    evens = chosen.importance[:, 0::2].argsort(dim=1, stable=True)
    dropped_first = chosen.keep[:, 0::2].gather(1, evens).to(torch.int8).argsort(dim=1, stable=True)
    gone = int((~chosen.keep[0]).sum())
    source, left = evens.gather(1, dropped_first)[:, :gone], chosen.index()[:, : evens.shape[1] - gone] // 2
    assert not bool(chosen.keep.gather(1, source * 2).any()) and bool((~chosen.keep).sum(1).eq(gone).all())
    taken = (chosen.merge * chosen.keep[:, :, None]).argmax(1)  # `[B,N]` kept row in which a token ended
    return source, taken.gather(1, source * 2) // 2, left


def compare_matching(book: Ledger, variant: str, names: tuple[str, str, str], chosen: Selection, x) -> None:
    """Sources, destinations and tokens left; where ties decide they are as alike as the reference's.

    `x`: `[B,N,D]` the metric.
    """
    source, target, left = matching(chosen)
    likeness = np.stack([cosines(row)[0::2, 1::2] for row in x])
    best = likeness.max(2)
    book.same(variant, names[0], source, ranked(best))
    book.same(variant, names[2], left, ranked(best))
    theirs = book.want(variant, names[0])

    def as_alike(want: np.ndarray, got: np.ndarray) -> None:
        rows = np.arange(len(best))[:, None]
        wanted = likeness[rows, theirs, want]
        np.testing.assert_allclose(likeness[rows, np.asarray(source), got], wanted, rtol=0, atol=1e-6)

    book.same(variant, names[1], target, as_alike)


@pytest.mark.golden("tome")
def test_tome(case: GoldenCase) -> None:
    book = Ledger(case)
    x, metric = tensor(case["in.x"]), tensor(case["in.metric"])
    signals = {"features": x, "encoder_keys": metric[:, None]}
    tokens = x.shape[1]
    for variant, options in book.variants.items():
        if options["mode"] == "kth":
            check_kth(book, variant, options["k"], signals)
            continue
        if options.get("cls") or options.get("distill"):
            book.leave_out_variant(
                variant, "class tokens never reach a cut of ours, which prunes patches only"
            )
            continue
        keep = tokens - min(options["r"], tokens // 2)
        chosen = run("tome/release", signals, [f"budget.keep={keep}"])
        mean = run("tome/release", signals, [f"budget.keep={keep}", "steps.0.combine=mean"])
        compare_matching(book, variant, ("src_idx", "dst_idx", "unm_idx"), chosen, metric)
        compare_merged(book, variant, chosen, mean, x)
        if "second" in options:
            again = {
                "features": emitted(chosen, x),
                "encoder_keys": emitted(chosen, x)[:, None],
                "size": chosen.size.gather(1, chosen.index()),
            }
            left = keep - min(options["second"], keep // 2)
            more = run("tome/release", again, [f"budget.keep={left}", "steps.0.carry=true"])
            compare_second(book, variant, chosen, more, again["features"])
    book.close_book()


DECIDE = ("src_idx", "dst_idx", "unm_idx")


def compare_merged(book: Ledger, variant: str, chosen: Selection, mean: Selection, x: torch.Tensor) -> None:
    values, average = emitted(chosen, x), emitted(mean, x)
    size = chosen.size.gather(1, chosen.index())[:, :, None]
    keeps = mass_stays(x, size)
    book.close(variant, "merged_wavg", values, 1e-5, after=DECIDE, fair=keeps)
    book.close(variant, "merged_mean", average, 1e-5, after=DECIDE, fair=keeps)
    book.close(variant, "size", size, after=DECIDE, fair=same_total)
    where = slots(chosen)
    if all(book.stable(variant, name) for name in DECIDE):
        book.same(variant, "source_argmax", where)
    book.leave_out(variant, "source_argmax", why="sources and destinations in other words")
    back = values.gather(1, where[:, :, None].expand(-1, -1, x.shape[2]))
    if book.want(variant, "unmerged").size:  # stored for small inputs only
        book.close(variant, "unmerged", back, 1e-5, after=DECIDE, fair=rows_in_common(0.5))
    book.leave_out(variant, "unmerged", why="stored for small inputs only")


def mass_stays(x: torch.Tensor, size: torch.Tensor) -> Check:
    """Merged tokens times their sizes sum to all tokens; every one is a mean of tokens that ties allow."""

    def check(want: np.ndarray, got: np.ndarray) -> None:
        total = x.double().sum(1).numpy()
        np.testing.assert_allclose((got * size.numpy()).sum(1), total, atol=1e-3)
        rows_in_common(0.5)(want, got)

    return check


def same_total(want: np.ndarray, got: np.ndarray) -> None:
    assert got.min() >= 1 and got.sum() == want.sum()


def compare_second(book: Ledger, variant: str, chosen: Selection, more: Selection, x: torch.Tensor) -> None:
    sizes = more.size.gather(1, more.index())[:, :, None]
    after = (*DECIDE, "round2_source")
    book.close(variant, "round2_merged", emitted(more, x), 1e-5, after=after, fair=rows_in_common(0.5))
    book.close(variant, "round2_size", sizes, after=after, fair=same_total)
    if all(book.stable(variant, name) for name in after):
        book.same(variant, "round2_source", slots(more).gather(1, slots(chosen)))
    book.leave_out(variant, "round2_source", why="after a tie the walks part; sizes and tokens are compared")


def check_kth(book: Ledger, variant: str, stride: int, signals: dict[str, torch.Tensor]) -> None:
    """Every k-th token is a destination.  The release forgets what follows the last whole block."""
    x = signals["features"]
    whole = x.shape[1] // stride * stride
    cut = {name: value[..., :whole, :] for name, value in signals.items()}
    options = ["steps.0.order=index", f"problem.scores.matched.stride={stride}"]
    options.append(f"budget.keep={whole // stride}")
    chosen = run("tome/kth", cut, options)
    mean = run("tome/kth", cut, [*options, "steps.0.combine=mean"])
    sources = [i for i in range(whole) if i % stride != stride - 1]
    home = slots(chosen)
    likeness = np.stack([cosines(row)[sources][:, stride - 1 :: stride] for row in cut["encoder_keys"][:, 0]])

    def as_alike(want: np.ndarray, got: np.ndarray) -> None:
        pick = [np.take_along_axis(likeness, i[:, :, None], 2) for i in (want, got)]
        np.testing.assert_allclose(pick[1], pick[0], rtol=0, atol=1e-6)

    book.same(variant, "dst_idx", home[:, sources], as_alike)
    after, values = ("dst_idx",), emitted(chosen, cut["features"])
    size = chosen.size.gather(1, chosen.index())[:, :, None]
    keeps = mass_stays(cut["features"], size)
    book.close(variant, "merged_wavg", values, 1e-5, after=after, fair=keeps)
    book.close(variant, "merged_mean", emitted(mean, cut["features"]), 1e-5, after=after, fair=keeps)
    book.close(variant, "size", size, after=after, fair=same_total)
    book.leave_out(variant, "source_argmax", "unmerged", why="destinations and merged tokens in other words")


@pytest.mark.golden("aim")
def test_aim(case: GoldenCase) -> None:
    book = Ledger(case)
    if "in.q" in case:
        check_pagerank(book)
    elif "in.x" in case:
        check_bipartite_rounds(book)
    else:
        check_schedule(book)
    book.close_book()


def check_pagerank(book: Ledger) -> None:
    q, k = tensor(book.case["in.q"]), tensor(book.case["in.k"])
    logits = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    length = logits.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    logits = logits + future * torch.finfo(torch.float32).min
    signals = Signals({"attention_logits": logits, "visual_index": torch.arange(length)[None]})
    for variant, options in book.variants.items():
        part = PageRank(tau=options["tau"], rounds=options["iters"], damping=float(options["d"]))
        book.close(variant, "importance", part(signals))


def check_bipartite_rounds(book: Ledger) -> None:
    x = tensor(book.case["in.x"])
    tokens = x.shape[1]
    for variant, options in book.variants.items():
        values, decided = x, ()
        for s, divisor in enumerate(options["steps"]):
            now = values.shape[1]
            keep = now - min(tokens // divisor, now // 2)
            overrides = [f"stages.0.budget.keep={keep}", "stages.0.steps.0.order=matched"]
            chosen = run("aim/merge", {"features": values}, overrides)
            names = (f"src_idx{s}", f"dst_idx{s}", f"unm_idx{s}")
            if all(book.stable(variant, name) for name in decided):
                compare_matching(book, variant, names, chosen, values)
            book.leave_out(variant, *names, why="after a tie the walks part, each right")
            decided += names
            values = emitted(chosen, values)
        book.close(variant, "merged", values, 1e-5, after=decided, fair=rows_in_common(0.5))


def check_schedule(book: Ledger) -> None:
    """The visual tokens left after each layer, from the stages of `aim/prune`."""
    importance = tensor(book.case["in.importance"])
    layers, length = importance.shape
    given = [f"stages.{s}.problem.scores.walk.kind=carried" for s in range(8)]
    stages = {stage.insertion.layer_index: s for s, stage in enumerate(load_spec("aim/prune").stages)}
    for variant, options in book.variants.items():
        first, last, _ = options["boundaries"][0]
        alive, masks, rate, rates = torch.arange(first, last), [], 1.0, []
        for layer in range(layers):
            stage = stages.get(layer + 1)  # a mask made in layer i acts from layer i + 1
            if stage is not None:
                signals = {"importance": importance[layer, alive][None]}
                chosen = run("aim/prune", signals, given, stage=stage, start=[last - first])
                alive = alive[chosen.keep[0]]
                asked = load_spec("aim/prune").stages[stage].budget.keep
                rate = float(asked) if len(alive) else 0.0
            whole = torch.ones(length, dtype=torch.bool)
            whole[first:last] = False
            whole[alive] = True
            masks.append(whole)
            rates.append(rate)
        book.same(variant, "keep_mask_after_layer", torch.stack(masks))
        book.same(variant, "num_kept", [int(mask.sum()) for mask in masks])
        book.close(variant, "retain_rate", rates)


@pytest.mark.golden("visionzip")
def test_visionzip(case: GoldenCase) -> None:
    book = Ledger(case)
    hidden, metric, attention = (tensor(case[f"in.{n}"]) for n in ("hidden", "metric", "cls_attn"))
    signals = {
        "features": hidden[:, 1:],
        "encoder_keys": metric[:, None, 1:],
        "cls_attention": attention[:, :, 1:],
    }
    for variant, options in book.variants.items():
        dominant, contextual = options["dominant"], options["contextual"]
        total = dominant + contextual
        overrides = [f"budget.keep={total}", f"problem.protect.share={dominant / total}"]
        chosen = run("visionzip/release", signals, overrides)
        tokens = torch.cat([hidden[:, :1], emitted(chosen, hidden[:, 1:])], 1)
        most = rows_in_common(0.9)
        decided = ("remaining_idx", "target_indices", "assign")
        book.close(variant, "tokens", tokens, 1e-5, after=decided, fair=most)
        score = chosen.importance[0]
        book.close(variant, "cls_attention_sum", score)
        protected = chosen.solution.problem.protected[0]
        best = protected.nonzero().squeeze(1)
        best = best[score[best].argsort(descending=True, stable=True)]
        with_cls = torch.cat([score.max()[None], score])
        book.order(variant, "all_indices", torch.cat([torch.zeros(1, dtype=torch.int64), best + 1]), with_cls)
        rest = (~protected).nonzero().squeeze(1)
        book.same(variant, "remaining_idx", rest + 1, same_worth(with_cls))
        targets = (chosen.keep[0] & ~protected).nonzero().squeeze(1)
        book.same(variant, "target_indices", torch.searchsorted(rest, targets))
        others = torch.tensor([i for i in rest.tolist() if i not in set(targets.tolist())])
        members = (chosen.merge[0, targets][:, others] > 0).float()
        likeness = cosines(metric[0, 1:])[others][:, targets]

        def as_alike(want: np.ndarray, got: np.ndarray, likeness: np.ndarray = likeness) -> None:
            rows = np.arange(len(likeness))
            np.testing.assert_allclose(likeness[rows, got], likeness[rows, want], rtol=0, atol=1e-6)

        book.same(variant, "assign", members.argmax(0), as_alike)
        book.close(variant, "counts", members.sum(1).clamp_min(1), after=decided, fair=same_total)
    book.close_book()


@pytest.mark.golden("prumerge")
def test_prumerge(case: GoldenCase) -> None:
    book = Ledger(case)
    hidden, k, q = (tensor(case[f"in.{n}"]) for n in ("hidden", "k", "q"))
    x = hidden[:, 1:]
    signals = {
        "features": x,
        "encoder_keys@-1": k[:, None, 1:],
        "cls_key@-1": k[:, None, 0],
        "cls_query@-1": q[:, None, 0],
    }
    tokens = x.shape[1]
    for variant, options in book.variants.items():
        overrides: list[str] = []
        if not options["adaptive"]:
            method = "prumerge/fixed"
            overrides = [f"budget.keep={options['ratio']}"]
            if options["plus"]:
                method = "prumerge/plus_release"
                overrides += ["budget.rule=null", "steps.0.divide=1", "steps.0.start=half"]
        else:
            method = "prumerge/plus_release" if options["plus"] else "prumerge/release"
        chosen = run(method, signals, overrides)
        book.close(variant, "cls_attn", chosen.importance)
        important = int(chosen.solution.keep.sum())
        book.same(variant, "n_important", important)
        ratio = options["ratio"] if not options["adaptive"] else important / tokens
        book.close(variant, "reduction_ratio", ratio)
        want = tensor(book.want(variant, "idx_order"))[0]
        if len(want.unique()) < len(want):
            assert options["plus"] and not options["adaptive"]
            compare_without_repeats(book, variant, chosen, x, want)
            continue
        if len(want) == tokens:  # nothing is dropped, and the release adds a token of zeros all the same
            assert "one_more_than_n" in load_spec(method).meta["deviations"]
            assert int(chosen.keep.sum()) == tokens
            order, rows = chosen.index()[0], book.want(variant, "tokens")[:, :-1]
            off = np.abs(emitted(chosen, x).numpy() - rows).max(-1)
            assert (off < 1e-5 * np.abs(rows).max()).mean() > 0.9 and off.max() < 0.05 * np.abs(rows).max()
            book.leave_out(variant, "tokens", "n_tokens", why="compared without the token too many")
        else:
            order = chosen.index()[0, :-1]
            book.same(variant, "n_tokens", int(chosen.keep.sum()))
        book.same(variant, "idx_order", order)
        book.same(variant, "idx", order.sort().values)
        if len(want) < tokens:  # the 32nd neighbour of a token may hang on rounding
            book.close(variant, "tokens", emitted(chosen, x), 1e-5, share=0.9)
    book.close_book()


def compare_without_repeats(book: Ledger, variant: str, chosen: Selection, x: torch.Tensor, want) -> None:
    """The release lists tokens of the grid twice where they are important too; a selection is a set."""
    assert "repeats" in load_spec("prumerge/plus_release").meta["deviations"]
    np.testing.assert_array_equal(chosen.index()[0, :-1].sort().values, want.unique())
    rows = tensor(book.want(variant, "tokens"))[0, :-1]
    off = ((chosen.merge @ x)[0][want] - rows).abs().amax(1)
    assert float((off < 1e-4).float().mean()) > 0.6  # repeats crowd out neighbours of some
    assert float(off.max()) < 0.05 * float(rows.abs().max())
    book.leave_out(variant, "idx_order", "idx", "tokens", "n_tokens", why="compared up to the repeats")


def test_prumerge_plus_never_hands_on_more_tokens_than_there_are() -> None:
    """Where the grid has a stride of one nothing is dropped, so there is no token for what was dropped."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 576, 16, generator=generator)
    query = torch.zeros(1, 1, 16)
    query[0, 0, 0] = 4.0
    keys = torch.randn(1, 1, 576, 16, generator=generator)
    keys[0, 0, :, 0] = 0.01 * torch.rand(576, generator=generator)
    keys[0, 0, 575 - torch.arange(0, 500, 5), 0] = 4.0  # outliers, 100 of 576, the last one among them
    signals = {"features": x, "encoder_keys@-1": keys, "cls_key@-1": keys[:, :, 0], "cls_query@-1": query}
    chosen = run("prumerge/plus_release", signals)
    assert int(chosen.solution.keep.sum()) == 100
    assert chosen.known_counts == (576,)
    a, unit = chosen.importance[0], torch.nn.functional.normalize(keys[0, 0], dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(32, dim=1).indices
    want = x[0] + (a[near][:, :, None] * x[0][near]).sum(1)
    torch.testing.assert_close((chosen.merge @ x)[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.golden("vflowopt")
def test_vflowopt(case: GoldenCase) -> None:
    book = Ledger(case)
    if "in.pixel_values" in case:
        pixels = tensor(case["in.pixel_values"])
        patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        part = PatchEntropy(mean=0.0, std=1.0)
        for variant in book.variants:
            book.close(variant, "entropy", part(Signals({"patches": patches})))
    elif "in.attn" in case:
        check_importance(book)
    else:
        check_recycling(book)
    book.close_book()


def check_importance(book: Ledger) -> None:
    attention, entropy = tensor(book.case["in.attn"]), tensor(book.case["in.entropy"]).flatten(1)
    for variant, options in book.variants.items():
        overrides = [
            f"stages.0.problem.scores.relevance.threshold={options['t']}",
            "stages.0.problem.scores.entropy.kind=carried",  # the file gives entropies, not pixels
            f"stages.0.problem.scores.entropy.weight={options['alpha_v']}",
            "stages.0.problem.scores.entropy.normalize=softmax",
            "stages.0.budget.rule=null",
            "stages.0.steps=[]",
            f"stages.0.budget.keep={max(book.want(variant, 'topk_idx').shape[1], 1)}",
        ]
        signals = {"encoder_attention": attention, "importance": entropy}
        chosen = run("vflowopt", signals, overrides)
        book.leave_out(variant, "n_global", why="seen through importance, a mean over these tokens")
        if not book.want(variant, "n_global").all():  # the release divides by an empty set; all count here
            assert np.isnan(book.want(variant, "importance")).any()
            empty = np.flatnonzero(book.want(variant, "n_global") == 0)
            every = attention.mean(1).mean(1) + options["alpha_v"] * entropy.softmax(1)
            np.testing.assert_allclose(chosen.importance[empty], every[empty], atol=2e-6)
            book.leave_out(variant, "importance", "topk_idx", why="not a number in the release")
            book.beyond.add(variant)
            continue
        book.close(variant, "importance", chosen.importance)
        got = chosen.solution.order
        if book.want(variant, "topk_idx").tolist() == np.sort(book.want(variant, "topk_idx")).tolist():
            got = got.sort(1).values
        book.same(variant, "topk_idx", got, same_worth(chosen.importance))


def check_recycling(book: Ledger) -> None:
    features, scores = tensor(book.case["in.features"]), tensor(book.case["in.attn_map"])
    common = book.case.param["common"]
    tokens, base = len(features), 27 * 27
    width = common["local_w"]
    width = next(
        w
        for w in (width, width + 1)
        if (tokens - base) % w == 0 and (tokens - base) // w == common["local_h"]
    )
    local = torch.arange(tokens - base)
    xy = torch.cat(
        [
            torch.stack([torch.arange(base) % 27, torch.arange(base) // 27], 1),
            torch.stack([local % width, local // width], 1),
        ]
    )
    signals = {
        "features": features[None],
        "importance": scores[None],
        "xy": xy[None],
        "group": torch.cat([torch.zeros(base), torch.ones(len(local))]).long()[None],
    }
    for variant, options in book.variants.items():
        keep = tokens - round(tokens * (1 - options["r"]))
        overrides = [
            "stages.0.problem.scores.relevance.kind=carried",  # the file gives the map itself
            "stages.0.problem.scores.entropy=null",
            f"stages.0.budget.keep={keep}",
            f"stages.0.budget.rule.cell={options['m']}",
            f"stages.0.steps.0.cell={options['m']}",
        ]
        chosen = run("vflowopt", signals, overrides)
        book.same(variant, "keep_mask", chosen.keep[0], same_worth(scores))
        after = ("keep_mask",)
        most = rows_in_common(0.9)
        book.close(variant, "features", emitted(chosen, features[None])[0], 1e-5, after=after, fair=most)
        book.leave_out(variant, "attn_map", why="the map given, at keep_mask")
        book.same(variant, "n_out", int(chosen.keep.sum()))
        book.same(variant, "n_groups", int(chosen.keep.sum() - chosen.solution.keep.sum()))
        book.leave_out(variant, "target_out", why="an input here: the budget")


@pytest.mark.golden("globalcom2")
def test_globalcom2(case: GoldenCase) -> None:
    book = Ledger(case)
    for variant, options in book.variants.items():
        check_crops(book, variant, options)
    book.close_book()


def check_crops(book: Ledger, variant: str, options: dict) -> None:
    case, common = book.case, book.case.param["common"]
    side, grid = common["side"], common["grid"]
    features, scores = tensor(case["in.features"]), tensor(case["in.attn"])
    xy = torch.stack([torch.arange(side * side) % side, torch.arange(side * side) // side], 1)
    rows = [(0, torch.arange(side * side), torch.tensor([-1, -1]))]
    for j in range(grid[0] * grid[1]):
        row, column = divmod(j, grid[0])
        unpadded = tensor(book.want(variant, f"crop{j}_valid_idx"))
        rows.append((j + 1, unpadded, torch.tensor([column, row])))
        book.leave_out(variant, f"crop{j}_valid_idx", why="an input here: the model cuts the canvas")
    parts = [(features[g, where], scores[g, where], xy[where], g, tile) for g, where, tile in rows]
    signals = {
        "features": torch.cat([p[0] for p in parts])[None],
        "cls_query@-1": torch.ones(1, 1, 1),
        "encoder_keys@-1": torch.cat([p[1] for p in parts])[None, None, :, None],
        "xy": torch.cat([p[2] for p in parts])[None],
        "grid": torch.full((1, sum(len(p[1]) for p in parts), 2), side),
        "group": torch.cat([torch.full((len(p[1]),), p[3]) for p in parts])[None],
        "tile": torch.cat([p[4].expand(len(p[1]), 2) for p in parts])[None],
    }
    temperature = options.get("temperature", 10.0)
    overrides = [f"budget.keep={options['retention']}", f"budget.rule.temperature={temperature}"]
    chosen = run("globalcom2/release", signals, overrides)
    keep = chosen.keep[0].split([len(r[1]) for r in rows])
    rule = CropAllocation(temperature=temperature)
    tiles = torch.stack([r[2] for r in rows[1:]])
    share = rule.shares(scores[0].view(side, side), tiles)
    book.close(variant, "scales", (options["retention"] * (1 + share)).clamp_max(1), floor=1e-6)
    thumb, worth = keep[0].nonzero().squeeze(1), chosen.importance[0, : side * side]
    book.same(variant, "thumb_idx", thumb, same_worth(worth))
    book.order(variant, "thumb_idx_order", thumb[worth[thumb].argsort(descending=True, stable=True)], worth)
    stretched = stretch(signals, rows)
    total = chosen.importance[0].split([len(r[1]) for r in rows])
    for j in range(len(rows) - 1):
        kept = keep[j + 1].nonzero().squeeze(1)
        book.same(variant, f"crop{j}_sel_in_valid", kept, same_worth(total[j + 1]))
        book.close(variant, f"crop{j}_global_scores", stretched[j + 1], floor=1e-5)
    book.leave_out(variant, "crop_dims", why="width and height of valid_idx")
    book.leave_out(variant, "final", why="the selected rows again, with newlines that the model adds")


def stretch(signals: dict[str, torch.Tensor], rows: list) -> tuple[torch.Tensor, ...]:
    grouped, place = split_groups(Signals(signals))
    part = ThumbnailScore(score="cls_similarity", options={"output": "logits"})
    values = part(grouped.view(part.needs))
    return tuple(values[g, place[g] >= 0] for g in range(len(rows)))
