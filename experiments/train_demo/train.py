"""Trains the demo model: ``python train.py --stage language|vision|joint``; see README.md."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from model import OracleTokens, VisionHeads, answer_logits, answer_loss, build_model
from packing import BLOCK, SUBJECTS, VISUAL_TOKENS, TextBatch
from render import Renderer
from safetensors.torch import load_file, save_file
from stage_language import language_batch, language_step
from stage_vision import dense_loss, regression_loss, see, vision_batch
from torch import nn
from vocabulary import EOS, WORDS

LANGUAGE_PARTS = ("model.model.language_model.", "model.lm_head.", "oracle.")
VISION_PARTS = ("model.model.vision_tower.", "model.model.multi_modal_projector.", "heads.")


class Parts(nn.Module):
    """The model with everything that exists during training only."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = build_model(seed)
        self.oracle = OracleTokens(self.model.config.text_config.hidden_size)
        self.heads = VisionHeads(self.model.config.vision_config.hidden_size)

    def load(self, path: Path, prefixes: tuple[str, ...]) -> None:
        """Loads every parameter that starts with one of ``prefixes``; all must be there."""
        stored = load_file(path)
        own = {k: v for k, v in self.state_dict().items() if k.startswith(prefixes)}
        missing = sorted(own.keys() - stored.keys())
        if missing:
            raise ValueError(f"{path} lacks {missing[:3]} and so on; train the earlier stage first")
        self.load_state_dict({k: stored[k] for k in own}, strict=False)

    def save(self, path: Path) -> None:
        """Writes a temporary file first, so that a checkpoint is never half written."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, f"{path}.tmp")
        Path(f"{path}.tmp").rename(path)


def learning_rate(spent: float, peak: float, step: int, warmup: int) -> float:
    """Linear warm-up by steps, then cosine over ``spent``, the used share of the time."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(spent, 1.0)))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)


def accuracy_by_words(logits: torch.Tensor, text: TextBatch) -> dict[str, float]:
    """Share of questions answered wholly right, grouped by what is asked."""
    right = (logits.argmax(-1).cpu() == text.targets) | (text.targets == -100)
    whole = right.reshape(-1, BLOCK).all(-1).tolist()
    table: dict[str, list[bool]] = {}
    for row, good in zip(text.ids.reshape(-1, BLOCK).tolist(), whole, strict=True):
        words = [WORDS[i] for i in row]
        if words[0] != EOS:
            key = " ".join(w for w in words[: words.index("?")] if w not in SUBJECTS)
            table.setdefault(key, []).append(good)
    return {key: round(float(np.mean(v)), 3) for key, v in sorted(table.items())}


Step = Callable[[float], tuple[torch.Tensor, dict[str, object]]]


def language_stage(parts: Parts, args: argparse.Namespace) -> Step:
    rng = np.random.default_rng(args.seed + 1)
    noise = torch.Generator().manual_seed(args.seed + 2)

    def step(spent: float) -> tuple[torch.Tensor, dict[str, object]]:
        labels, text = language_batch(rng, args.batch)
        copy = 0.0 if args.freeze_tokens else 0.2 * max(0.0, 1 - spent * 4)
        kept = args.kept if spent < 0.8 else VISUAL_TOKENS
        loss, logits = language_step(parts.model, parts.oracle, labels, text, kept, copy, 0.15, noise)
        return loss, {"accuracy": accuracy_by_words(logits, text)}

    return step


def vision_stage(parts: Parts, args: argparse.Namespace) -> Step:
    renderer = Renderer(args.material, "train", args.seed)
    rng = np.random.default_rng(args.seed + 3)
    regress = args.language is not None

    def step(spent: float) -> tuple[torch.Tensor, dict[str, object]]:
        batch = vision_batch(renderer, rng, args.batch, args.dense_share, asked=False)
        last_layer = bool(rng.random() < 0.25)
        features, pooled = see(parts.model, batch.pixels, capture=last_layer)
        loss, record = dense_loss(features, pooled, parts.heads, batch.labels)
        if regress:
            projected = parts.model.model.multi_modal_projector(features[:, 1:])
            words = parts.model.get_input_embeddings().weight
            distance = regression_loss(projected, words, parts.oracle, batch.labels)
            loss = loss + 2.0 * distance
            record["regression"] = float(distance.detach())
        return loss, record

    return step


def joint_stage(parts: Parts, args: argparse.Namespace) -> Step:
    renderer = Renderer(args.material, "train", args.seed + 10)
    rng = np.random.default_rng(args.seed + 4)

    def step(spent: float) -> tuple[torch.Tensor, dict[str, object]]:
        batch = vision_batch(renderer, rng, args.batch, 0.0, asked=True)
        features, pooled = see(parts.model, batch.pixels)
        loss, record = dense_loss(features, pooled, parts.heads, batch.labels)
        visual = parts.model.model.multi_modal_projector(features[:, 1:])
        places = torch.arange(VISUAL_TOKENS).expand(len(visual), -1)
        logits, _ = answer_logits(parts.model, visual, places, batch.text)
        answers = answer_loss(logits, batch.text)
        record["answer_loss"] = float(answers.detach())
        record["accuracy"] = accuracy_by_words(logits, batch.text)
        return answers + args.dense_weight * loss, record

    return step


STAGES = {"language": language_stage, "vision": vision_stage, "joint": joint_stage}


def trained_parameters(parts: Parts, args: argparse.Namespace) -> list[nn.Parameter]:
    if args.stage == "joint":
        return [p for n, p in parts.named_parameters() if not n.startswith("oracle.")]
    own = LANGUAGE_PARTS if args.stage == "language" else VISION_PARTS
    named = [(n, p) for n, p in parts.named_parameters() if n.startswith(own)]
    if args.freeze_tokens:
        named = [(n, p) for n, p in named if not n.startswith("oracle.") and "embed_t" not in n]
    return [parameter for _, parameter in named]


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = Parts(args.seed)
    if args.language is not None:
        parts.load(args.language, LANGUAGE_PARTS)
    if args.vision is not None:
        parts.load(args.vision, VISION_PARTS)
    checkpoint = args.out / f"{args.stage}.safetensors"
    if args.resume:
        parts.load(checkpoint, LANGUAGE_PARTS + VISION_PARTS)
    parameters = trained_parameters(parts, args)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
    one_step = STAGES[args.stage](parts, args)
    begin, step, saved = time.time(), 0, time.time()
    with (args.out / f"{args.stage}.jsonl").open("a") as log:
        while (spent := (time.time() - begin) / (60 * args.minutes)) < 1:
            rate = learning_rate(spent, args.lr, step, args.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, record = one_step(spent)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            if step % args.log_every == 0:
                line = {"stage": args.stage, "step": step, "seconds": round(time.time() - begin, 1)}
                line |= {"loss": round(float(loss.detach()), 4), **record}
                print(json.dumps(line), flush=True)
                log.write(json.dumps(line) + "\n")
                log.flush()
            if time.time() - saved > 60:
                parts.save(checkpoint)
                saved = time.time()
    parts.save(checkpoint)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--out", type=Path, default=Path("work"))
    parser.add_argument("--material", type=Path, default=Path("work/material.npz"))
    parser.add_argument("--language", type=Path, help="checkpoint with the language parts")
    parser.add_argument("--vision", type=Path, help="checkpoint with the vision parts")
    parser.add_argument("--resume", action="store_true", help="start from this stage's checkpoint")
    parser.add_argument(
        "--freeze-tokens",
        action="store_true",
        help="stage language: keep words and oracle tables, so that stage vision can run beside it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--kept", type=int, default=60, help="visual tokens in stage language")
    parser.add_argument("--dense-share", type=float, default=0.85)
    parser.add_argument("--dense-weight", type=float, default=0.5)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    run(parse())
