"""ToMe, AIM, VisionZip, PruMerge, VFlowOpt and GlobalCom2 against what their released code returned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import GoldenCase
from zoo import Ledger, run, tensor

from pruneopt.budgets.crop_allocation import CropAllocation
from pruneopt.compose import keep_top
from pruneopt.scores.bipartite_similarity import best_destination, metric_rows
from pruneopt.scores.pagerank import PageRank
from pruneopt.scores.patch_entropy import PatchEntropy
from pruneopt.scores.thumbnail_score import ThumbnailScore
from pruneopt.signals import Signals
from pruneopt.solution import Selection
from pruneopt.spec import load_spec


def emitted(chosen: Selection, values: torch.Tensor) -> torch.Tensor:
    """`[B,K,D]` tokens that a selection hands on, in its order."""
    order = chosen.index()
    values = values if chosen.merge is None else chosen.merge @ values
    return values.gather(1, order[:, :, None].expand(-1, -1, values.shape[2]))


def slots(chosen: Selection) -> torch.Tensor:
    """`[B,N]` slot of the output in which every input token ended."""
    order = chosen.index()
    return chosen.merge.gather(1, order[:, :, None].expand(-1, -1, chosen.merge.shape[2])).argmax(1)


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
            # pinned class tokens never reach a cut of ours, which prunes patches only
            names = [k.split(".")[-1] for k in case.arrays if k.startswith(f"out.{variant}.")]
            book.leave_out(variant, *names)
            continue
        keep = tokens - min(options["r"], tokens // 2)
        chosen = run("tome/release", signals, [f"budget.keep={keep}"])
        easy = book.stable(variant, "src_idx") and book.stable(variant, "unm_idx")
        even = torch.arange(0, tokens, 2).expand(len(x), -1)
        best, home = best_destination(metric_rows(metric), Signals(signals).mask, 2)
        ranked = best[:, 0::2].argsort(dim=1, descending=True, stable=True)
        book.same(variant, "src_idx", ranked[:, : tokens - keep])
        book.same(variant, "unm_idx", ranked[:, tokens - keep :])
        partner = (home.gather(1, even) // 2).gather(1, ranked[:, : tokens - keep])
        book.same(variant, "dst_idx", partner)
        stays = chosen.keep.gather(1, even).gather(1, ranked[:, tokens - keep :])
        assert bool(stays.all()) or not easy
        mean = run("tome/release", signals, [f"budget.keep={keep}", "steps.0.combine=mean"])
        check_merged(book, variant, chosen, mean, x, easy)
        if "second" in options:
            again = {
                "features": emitted(chosen, x),
                "encoder_keys": emitted(chosen, x)[:, None],
                "size": chosen.size.gather(1, chosen.index()),
            }
            left = keep - min(options["second"], keep // 2)
            more = run("tome/release", again, [f"budget.keep={left}", "steps.0.carry=true"])
            source = slots(more).gather(1, slots(chosen))
            sizes = more.size.gather(1, more.index())[:, :, None]
            if easy and book.stable(variant, "round2_source"):
                book.close(variant, "round2_merged", emitted(more, again["features"]), floor=1e-5)
                book.close(variant, "round2_size", sizes)
                book.same(variant, "round2_source", source)
            else:
                assert float(sizes.sum()) == tokens * len(x)
                book.leave_out(variant, "round2_merged", "round2_size", "round2_source")
    book.close_book()


def check_merged(
    book: Ledger, variant: str, chosen: Selection, mean: Selection, x: torch.Tensor, easy: bool
) -> None:
    names = ("merged_wavg", "merged_mean", "size", "source_argmax", "unmerged")
    size = chosen.size.gather(1, chosen.index())[:, :, None]
    if not easy:  # ties: which of two equal tokens is merged is a matter of rounding; mass must not be lost
        assert float(size.sum()) == x.shape[0] * x.shape[1]
        back = (emitted(chosen, x) * size).sum(1)
        np.testing.assert_allclose(back, x.sum(1), atol=1e-3)
        book.leave_out(variant, *names)
        return
    book.close(variant, "merged_wavg", emitted(chosen, x), floor=1e-5)
    book.close(variant, "merged_mean", emitted(mean, x), floor=1e-5)
    book.close(variant, "size", size)
    where = slots(chosen)
    book.same(variant, "source_argmax", where)
    if not book.want(variant, "unmerged").size:  # stored for small inputs only
        book.leave_out(variant, "unmerged")
    else:
        values = emitted(chosen, x)
        book.close(
            variant, "unmerged", values.gather(1, where[:, :, None].expand(-1, -1, x.shape[2])), floor=1e-5
        )


def check_kth(book: Ledger, variant: str, stride: int, signals: dict[str, torch.Tensor]) -> None:
    """Every k-th token is a destination.  The release forgets what follows the last whole block."""
    x = signals["features"]
    whole = x.shape[1] // stride * stride
    cut = {name: value[..., :whole, :] for name, value in signals.items()}
    options = ["steps.0.order=index", f"problem.scores.matched.stride={stride}", f"steps.0.stride={stride}"]
    options.append(f"budget.keep={whole // stride}")
    chosen = run("tome/kth", cut, options)
    mean = run("tome/kth", cut, [*options, "steps.0.combine=mean"])
    _, home = best_destination(metric_rows(cut["encoder_keys"]), Signals(cut).mask, stride)
    sources = [i for i in range(whole) if i % stride != stride - 1]
    partner = home[:, sources] // stride
    book.same(variant, "dst_idx", partner)
    if not book.stable(variant, "dst_idx"):
        book.leave_out(variant, "merged_wavg", "merged_mean", "size", "source_argmax", "unmerged")
        return
    book.close(variant, "merged_wavg", emitted(chosen, cut["features"]), floor=1e-5)
    book.close(variant, "merged_mean", emitted(mean, cut["features"]), floor=1e-5)
    book.close(variant, "size", chosen.size.gather(1, chosen.index())[:, :, None])
    where = slots(chosen)
    wanted = tensor(book.want(variant, "source_argmax"))
    if wanted.shape[1] != whole:
        wanted = wanted[:, :whole]
    np.testing.assert_array_equal(where, wanted)
    book.leave_out(variant, "source_argmax")  # compared just above, up to the last whole block
    if not book.want(variant, "unmerged").size:  # stored for small inputs only
        book.leave_out(variant, "unmerged")
    else:
        values = emitted(chosen, cut["features"])
        back = values.gather(1, where[:, :, None].expand(-1, -1, x.shape[2]))
        np.testing.assert_allclose(back, book.want(variant, "unmerged")[:, :whole], atol=1e-4)
        book.leave_out(variant, "unmerged")  # compared just above, up to the last whole block


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
        values, easy = x, True
        for s, divisor in enumerate(options["steps"]):
            signals = {"features": values}
            now = values.shape[1]
            drop = min(tokens // divisor, now // 2)
            best, home = best_destination(metric_rows(values), Signals(signals).mask, 2)
            ranked = best[:, 0::2].argsort(dim=1, descending=True, stable=True)
            even = torch.arange(0, now, 2).expand(len(x), -1)
            partner = (home.gather(1, even) // 2).gather(1, ranked[:, :drop])
            names = (f"src_idx{s}", f"dst_idx{s}", f"unm_idx{s}")
            if easy:
                book.same(variant, names[0], ranked[:, :drop])
                book.same(variant, names[1], partner)
                book.same(variant, names[2], ranked[:, drop:])
            else:
                book.leave_out(variant, *names)
            easy = easy and all(book.stable(variant, name) for name in names)
            chosen = run(
                "aim/merge", signals, [f"stages.0.budget.keep={now - drop}", "stages.0.steps.0.order=matched"]
            )
            values = emitted(chosen, values)
        want = book.want(variant, "merged")
        assert values.shape == want.shape
        if easy:
            book.close(variant, "merged", values, floor=1e-5)
        else:
            book.leave_out(variant, "merged")


def check_schedule(book: Ledger) -> None:
    """The visual tokens left after each layer, from the stages of `aim/prune`."""
    importance = tensor(book.case["in.importance"])
    layers, length = importance.shape
    for variant, options in book.variants.items():
        first, last, _ = options["boundaries"][0]
        tokens = last - first
        spec = load_spec("aim/prune")
        keeps = {stage.insertion.layer_index: stage for stage in spec.stages}
        alive, masks, rates, kept = torch.ones(tokens, dtype=torch.bool), [], [], []
        for layer in range(layers):
            stage = keeps.get(layer + 1)  # a mask made in layer i acts from layer i + 1
            if stage is not None:
                gone = any(step.name == "drop_all" for step in stage.steps)
                count = 0 if gone else stage.budget.count(tokens, int(alive.sum()))
                score = importance[layer, first:last][None]
                alive = keep_top(score, torch.tensor([count]), alive[None])[0]
            whole = torch.ones(length, dtype=torch.bool)
            whole[first:last] = alive
            masks.append(whole)
            kept.append(int(whole.sum()))
        book.same(variant, "keep_mask_after_layer", torch.stack(masks))
        book.same(variant, "num_kept", kept)
        rates = [min(1.0, max(0.0, 1 - (i - 13) / 8)) for i in range(layers)]
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
        share = dominant / total
        overrides = [f"budget.keep={total}", f"problem.protect.share={share}"]
        chosen = run("visionzip/release", signals, overrides)
        tokens = torch.cat([hidden[:, :1], emitted(chosen, hidden[:, 1:])], 1)
        decided = ("all_indices", "remaining_idx", "target_indices", "assign")
        book.close(variant, "tokens", tokens, 1e-5, after=decided)
        book.close(variant, "cls_attention_sum", chosen.importance)
        protected = chosen.solution.problem.protected[0]
        ranked = chosen.importance[0].argsort(descending=True, stable=True)[:dominant]
        assert bool(protected[ranked].all())
        cls = torch.zeros(1, dtype=torch.int64)
        book.same(variant, "all_indices", torch.cat([cls, ranked + 1]))
        rest = (~protected).nonzero().squeeze(1)
        book.same(variant, "remaining_idx", rest + 1)
        targets = (chosen.keep[0] & ~protected).nonzero().squeeze(1)
        book.same(variant, "target_indices", torch.searchsorted(rest, targets))
        others = torch.tensor([i for i in rest.tolist() if i not in set(targets.tolist())])
        members = (chosen.merge[0, targets][:, others] > 0).float()
        book.same(variant, "assign", members.argmax(0))
        book.close(variant, "counts", members.sum(1).clamp_min(1), after=("assign", "remaining_idx"))
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
        order = chosen.index()[0, :-1]
        important = int(chosen.solution.keep.sum())
        book.same(variant, "n_important", important)
        ratio = options["ratio"] if not options["adaptive"] else important / tokens
        book.close(variant, "reduction_ratio", ratio)
        want = tensor(book.want(variant, "idx_order"))[0]
        if len(want.unique()) < len(want):  # the release lists grid tokens twice; a selection is a set
            assert options["plus"] and not options["adaptive"]
            np.testing.assert_array_equal(order.sort().values, want.unique())
            rows = tensor(book.want(variant, "tokens"))[0, :-1]
            off = ((chosen.merge @ x)[0][want] - rows).abs().amax(1)
            assert float((off < 1e-4).float().mean()) > 0.6  # repeats crowd out neighbours of some
            assert float(off.max()) < 0.05 * float(rows.abs().max())
            book.leave_out(variant, "idx_order", "idx", "tokens", "n_tokens")  # up to the repeats
            continue
        book.same(variant, "n_tokens", int(chosen.keep.sum()))
        book.same(variant, "idx_order", order)
        book.same(variant, "idx", order.sort().values)
        # the 32nd neighbour of a token may hang on rounding
        book.close(variant, "tokens", emitted(chosen, x), 1e-5, after=("idx_order",), share=0.9)
    book.close_book()


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
        received = attention.mean(1).mean(1)
        wide = received > options["t"] * received.mean(1, keepdim=True)
        book.same(variant, "n_global", wide.sum(1))
        if not wide.any(1).all():  # the release divides by an empty set
            assert np.isnan(book.want(variant, "importance")).any() and chosen.importance.isfinite().all()
            book.leave_out(variant, "importance", "topk_idx")
            continue
        book.close(variant, "importance", chosen.importance)
        got = chosen.solution.order
        if book.want(variant, "topk_idx").tolist() == np.sort(book.want(variant, "topk_idx")).tolist():
            got = got.sort(1).values
        book.same(variant, "topk_idx", got)


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
        book.same(variant, "keep_mask", chosen.keep[0])
        book.close(variant, "features", emitted(chosen, features[None]), 1e-5, after=("keep_mask",))
        book.close(variant, "attn_map", scores[chosen.indices[0]], after=("keep_mask",))
        book.same(variant, "n_out", int(chosen.keep.sum()))
        book.same(variant, "n_groups", int(chosen.keep.sum() - chosen.solution.keep.sum()))
        book.same(variant, "target_out", keep)


@pytest.mark.golden("globalcom2")
def test_globalcom2(case: GoldenCase) -> None:
    book = Ledger(case)
    for variant, options in book.variants.items():
        check_crops(book, variant, options)
    book.close_book()


def valid_area(side: int, grid: list[int], orig: list[int]) -> torch.Tensor:
    """`[rows,columns]` bool: canvas tokens left when LLaVA removes the padding of a picture."""
    columns, rows = side * grid[0], side * grid[1]
    mask = torch.ones(rows, columns, dtype=torch.bool)
    if orig[0] / orig[1] > columns / rows:
        pad = (rows - int(orig[1] * (columns / orig[0]))) // 2
        mask[:pad], mask[rows - pad :] = False, False
    else:
        pad = (columns - int(orig[0] * (rows / orig[1]))) // 2
        mask[:, :pad], mask[:, columns - pad :] = False, False
    return mask


def check_crops(book: Ledger, variant: str, options: dict) -> None:
    case, common = book.case, book.case.param["common"]
    side, grid = common["side"], common["grid"]
    features, scores = tensor(case["in.features"]), tensor(case["in.attn"])
    valid = valid_area(side, grid, common["orig"])
    xy = torch.stack([torch.arange(side * side) % side, torch.arange(side * side) // side], 1)
    rows = [(0, torch.arange(side * side), torch.tensor([-1, -1]))]
    for j in range(grid[0] * grid[1]):
        row, column = divmod(j, grid[0])
        cell = valid[row * side : (row + 1) * side, column * side : (column + 1) * side].flatten()
        rows.append((j + 1, cell.nonzero().squeeze(1), torch.tensor([column, row])))
        book.same(variant, f"crop{j}_valid_idx", rows[-1][1])
    dims = (
        [(r[1] % side).unique().numel() for r in rows[1:]],
        [(r[1] // side).unique().numel() for r in rows[1:]],
    )
    book.same(variant, "crop_dims", torch.tensor(dims).T)
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
    thumb = keep[0].nonzero().squeeze(1)
    book.same(variant, "thumb_idx", thumb)
    ranked = scores[0].argsort(descending=True, stable=True)[: len(thumb)]
    book.same(variant, "thumb_idx_order", ranked)
    stretched = stretch(signals, rows)
    for j in range(len(rows) - 1):
        book.same(variant, f"crop{j}_sel_in_valid", keep[j + 1].nonzero().squeeze(1))
        book.close(variant, f"crop{j}_global_scores", stretched[j + 1], floor=1e-5)
    if not bool(valid.all()):  # the release misplaces survivors where there is padding
        book.leave_out(variant, "final")
        return
    decided = tuple(f"crop{j}_sel_in_valid" for j in range(len(rows) - 1))
    book.close(variant, "final", assembled(case, features, keep[1:], side, grid), 2e-3, after=decided)


def stretch(signals: dict[str, torch.Tensor], rows: list) -> tuple[torch.Tensor, ...]:
    from pruneopt.grouping import split_groups

    grouped, place = split_groups(Signals(signals))
    part = ThumbnailScore(score="cls_similarity", options={"output": "logits"})
    values = part(grouped.view(part.needs))
    return tuple(values[g, place[g] >= 0] for g in range(len(rows)))


def assembled(case, features: torch.Tensor, keep: list, side: int, grid: list[int]) -> torch.Tensor:
    """Crop tokens in raster order of the canvas, a newline after each of its rows, in float16 as released."""
    newline = tensor(case["in.newline"])
    out = []
    for y in range(side * grid[1]):
        for column in range(grid[0]):
            crop = (y // side) * grid[0] + column
            inside = torch.arange(side) + (y % side) * side
            out.append(features[crop + 1, inside[keep[crop][inside]]])
        out.append(newline[None])
    return torch.cat(out).half().float()
