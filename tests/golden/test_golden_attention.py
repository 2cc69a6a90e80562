"""FastV, PyramidDrop, TransPrune, SparseVLM and FasterVLM against what their released code returned."""

from __future__ import annotations

import pytest
import torch
from fair import ranked, rows_in_common, same_worth
from golden_files import GoldenCase
from golden_zoo import Ledger, rotary_rows, run, tensor

import pruneopt.parts.steps.recycle_clusters as recycling
from pruneopt.parts.scores.rater_attention import RaterAttention
from pruneopt.parts.scores.transition import sublayer_transition
from pruneopt.pruner import combine
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


@pytest.mark.golden("fastv")
def test_fastv(case: GoldenCase) -> None:
    book, common = Ledger(case), case.param["common"]
    first, tokens = common["sys"], common["N"]
    rows = tensor(case["in.attn_last_row"])
    signals = {"attention_last": rows[None, :, first : first + tokens]}
    for variant, options in book.variants.items():
        chosen = run("fastv", signals, [f"budget.keep={options['rank']}"])
        score = chosen.importance[0]
        book.close(variant, "score", score)
        book.same(variant, "idx", chosen.indices[0], same_worth(score))
        book.order(variant, "topk_order", chosen.solution.order[0], score)
        again = ("keep_indexs", "position_ids", "keep_mask")
        book.leave_out(variant, *again, why="idx again, among the text around the picture")
    book.close_book()


@pytest.mark.golden("fastervlm")
def test_fastervlm(case: GoldenCase) -> None:
    book = Ledger(case)
    signals = {"cls_attention": tensor(case["in.cls_attn"]), "features": tensor(case["in.features"])}
    for variant, options in book.variants.items():
        chosen = run("fastervlm", signals, [f"budget.keep={options['T']}"])
        score = chosen.importance
        book.close(variant, "score", score)
        book.same(variant, "mask", chosen.keep, same_worth(score))
        book.same(variant, "idx", torch.stack(chosen.indices), same_worth(score))
        book.order(variant, "topk_order", chosen.solution.order, score)
    book.close_book()


@pytest.mark.golden("pyramiddrop")
def test_pyramiddrop(case: GoldenCase) -> None:
    book, common = Ledger(case), case.param["common"]
    first, tokens = common["start"], common["N"]
    wq, wk = tensor(case["in.Wq"]), tensor(case["in.Wk"])
    for variant, options in book.variants.items():
        hidden, ratios = tensor(case["in.hidden"]), options["ratios"]
        layers = [8 * (i + 1) for i in range(len(ratios))]
        overrides = [f"insertion.layer={layers}", f"budget.keep={ratios}"]
        for s in range(len(ratios)):
            last = torch.tensor([hidden.shape[1] - 1])
            rows = rotary_rows(hidden, wq, wk, common["heads"], common["rms_eps"], common["rope_base"], last)
            alive = hidden.shape[1] - (case["in.hidden"].shape[1] - tokens)
            row = rows[:, :, 0, first : first + alive]
            chosen = run("pyramiddrop/release", {"lookahead_last": row}, overrides, stage=s, start=[tokens])
            score = chosen.importance[0]
            book.close(variant, f"s{s}_score", score)
            book.same(variant, f"s{s}_rel_idx", chosen.indices[0], same_worth(score))
            book.leave_out(variant, f"s{s}_idx", why="rel_idx again, counted from the first stage")
            # the next stage starts from the reference's picks, so that a tie here does not end the comparison
            kept = tensor(book.want(variant, f"s{s}_rel_idx"))
            hidden = torch.cat([hidden[:, :first], hidden[:, first + kept], hidden[:, first + alive :]], 1)
        book.leave_out(variant, "final_hidden", why="the rows of the last idx, unchanged")
    book.close_book()


@pytest.mark.golden("transprune")
def test_transprune(case: GoldenCase) -> None:
    book, common = Ledger(case), case.param["common"]
    first, tokens = common["start"], common["N"]
    wq, wk, trans = (tensor(case[f"in.{n}"]) for n in ("Wq", "Wk", "trans"))
    for variant, options in book.variants.items():
        places = torch.arange(trans.shape[2])
        stored: dict[int, torch.Tensor] = {}
        for s, (ratio, layers) in enumerate(zip(options["ratios"], options["layers_per_stage"], strict=True)):
            alive = len(places) - (trans.shape[2] - tokens)
            span = slice(first, first + alive)
            real = torch.ones(1, len(places), dtype=torch.bool)
            for layer in layers:
                a, b, c, d = (trans[layer, i, places][None] for i in range(4))
                whole = sublayer_transition(a, b, mask=real, absolute=False) + sublayer_transition(
                    c, d, mask=real, absolute=False
                )
                book.close(variant, f"s{s}_ttv_layer{layer}", whole)
                stored[layer] = whole
            hidden = tensor(case["in.hidden"])[:, places]
            text = torch.arange(first + alive, len(places))
            rows = rotary_rows(hidden, wq, wk, common["heads"], common["rms_eps"], common["rope_base"], text)
            signals = {f"transition@{layer}": value[:, span] for layer, value in stored.items()}
            signals["lookahead_text"] = rows[:, :, :, span]
            signals["text_mask"] = torch.ones(1, len(text), dtype=torch.bool)
            where = f"stages.{s}"
            overrides = [
                f"{where}.budget.keep={ratio}",
                f"{where}.problem.scores.transition.layers={sorted(stored)}",
                f"{where}.problem.scores.transition.weight=1",
                f"{where}.problem.scores.instruction.weight=1",
            ]
            chosen = run("transprune/release", signals, overrides, stage=s, start=[tokens])
            spec = load_spec("transprune/release", overrides).stages[s]
            parts = {part.label: part for part in spec.problem.scores}
            view = Signals(signals)
            book.close(variant, f"s{s}_ttv", combine([parts["transition"]], view, pairwise=False))
            book.close(variant, f"s{s}_iga", combine([parts["instruction"]], view, pairwise=False))
            book.close(variant, f"s{s}_score", chosen.importance)
            book.same(variant, f"s{s}_rel_idx", chosen.indices[0], same_worth(chosen.importance))
            book.leave_out(variant, f"s{s}_idx", why="rel_idx again, counted from the first stage")
            # the next stage starts from the reference's picks, so that a tie here does not end the comparison
            kept = tensor(book.want(variant, f"s{s}_rel_idx"))
            inside = torch.cat([torch.arange(first), first + kept, text])
            places = places[inside]
            stored = {layer: value[:, inside] for layer, value in stored.items()}
    book.close_book()


@pytest.mark.golden("sparsevlm")
def test_sparsevlm(case: GoldenCase, monkeypatch: pytest.MonkeyPatch) -> None:
    book, common = Ledger(case), case.param["common"]
    first, tokens = common["start"], common["N"]
    noise = tensor(case["in.noise"])
    monkeypatch.setattr(recycling, "density_noise", lambda seed, count, noise=noise: noise[:count])
    hidden = tensor(case["in.hidden"])
    start = hidden[:, first : first + tokens]
    text = hidden[:, first + tokens :]
    fixed = {
        "text_embeddings": text,
        "text_mask": torch.ones(1, text.shape[1], dtype=torch.bool),
        "start_embeddings": start,
        "start_mask": torch.ones(1, tokens, dtype=torch.bool),
    }
    for variant, options in book.variants.items():
        plus = options.get("V2", False)
        method = "sparsevlm/plus" if plus else "sparsevlm/release"
        visual = start
        sequence = torch.arange(hidden.shape[1])
        for s in range(len(options["keep"])):
            alive = visual.shape[1]
            attention = tensor(case[f"in.attn{s}"])
            span = slice(first, first + alive)
            signals = {
                **fixed,
                "features": visual,
                "attention_text": attention[:, :, first + alive :, span],
                "visual_index": torch.arange(first, first + alive)[None],
                "text_index": torch.arange(first + alive, attention.shape[2])[None],
            }
            layers = [3 + i for i in range(len(options["keep"]))]
            overrides = [f"insertion.layer={layers}", f"budget.keep={options['keep']}"]
            if plus:
                overrides.append(f"problem.scores.raters.head_dim={options['head_dim']}")
            chosen = run(method, signals, overrides, stage=s, start=[max(alive, tokens)])
            if s == 0:
                chose, weight = RaterAttention(strict=True).raters(Signals(signals))
                book.close(variant, "rater_score", weight)
                book.same(variant, "raters", chose[0].nonzero().squeeze(1))
            score = chosen.importance
            book.close(variant, f"s{s}_score", score, floor=2e-5 if plus else 2e-6)
            plain = chosen.solution.keep[0]
            fair = same_worth(score, slack=2e-5 if plus else 1e-6)
            book.same(variant, f"s{s}_idx", plain.nonzero().squeeze(1), fair)
            book.same(variant, f"s{s}_keep_mask", plain, fair)
            book.same(variant, f"s{s}_v_token_num", int(chosen.keep.sum()))
            assert chosen.known_counts == (int(chosen.keep.sum()),)
            order = chosen.index()
            values = visual if chosen.merge is None else chosen.merge @ visual
            visual = values.gather(1, order[:, :, None].expand(-1, -1, values.shape[2]))
            whole = torch.cat([hidden[:, :first], visual, text], 1)
            decided = tuple(f"s{t}_{n}" for t in range(s + 1) for n in ("idx", "merge_src"))
            most = rows_in_common(0.9, 2e-5)
            if book.has(variant, f"s{s}_merged"):
                added = int(chosen.keep.sum()) - int(plain.sum())
                book.close(variant, f"s{s}_merged", visual[:, -added:], 2e-5, after=decided, fair=most)
                rows = chosen.merge[0, order[0, -added:]].abs().sum(0) > 0
                dropped = (~plain).nonzero().squeeze(1)
                pool = torch.searchsorted(dropped, rows.nonzero().squeeze(1))
                recycled = pool[score[0, dropped[pool]].argsort(descending=True, stable=True)]
                book.same(variant, f"s{s}_merge_src", recycled, ranked(score[0, dropped]))
            book.close(variant, f"s{s}_hidden", whole, 2e-5, after=decided, fair=most)
            inside = sequence[first : first + alive][order[0]]
            sequence = torch.cat([sequence[:first], inside, sequence[first + alive :]])
            places = sequence if plus else torch.arange(whole.shape[1])
            book.same(variant, f"s{s}_position_ids", places[None])
    book.close_book()
