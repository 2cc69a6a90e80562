"""Measures the shipped model: dense, blind and randomly pruned, by question type.

Independent of pruneopt's own pruning: tokens are deleted by hand from the input embeddings, or
hidden by a mask from the layers after a given one, and the survivors keep their positions.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from pruneopt.demo import Question, format_prompt, load_model, load_questions, score

MAX_WORDS = 3
BATCH = 64
Answers = dict[str, bool]


class Evaluator:
    """Greedy answers of the shipped model from cached visual tokens."""

    def __init__(self, questions: list[Question]) -> None:
        self.model, self.processor = load_model()
        self.tokenizer = self.processor.tokenizer
        self.questions = questions
        paths = sorted({question.image for question in questions})
        self.row_of = {path: row for row, path in enumerate(paths)}
        self.visual = torch.cat([self._see(paths[i : i + 32]) for i in range(0, len(paths), 32)])
        self.image_id = self.model.config.image_token_index
        self.eos_id = self.tokenizer.eos_token_id

    @torch.no_grad()
    def _see(self, paths: list[Path]) -> torch.Tensor:
        """Projected visual tokens [pictures, tokens, width]."""
        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        config = self.model.config
        seen = self.model.model.vision_tower(pixels, output_hidden_states=True)
        patches = seen.hidden_states[config.vision_feature_layer][:, 1:]
        return self.model.model.multi_modal_projector(patches)

    @torch.no_grad()
    def greedy(self, ids: torch.Tensor, visual: torch.Tensor, keep: torch.Tensor, layer: int) -> torch.Tensor:
        """Continues equally long prompts; returns word ids [batch, MAX_WORDS].

        ``ids`` [batch, words] holds one ``<image>`` each, ``visual`` is [batch, tokens, width] and
        ``keep`` [batch, kept] says which visual tokens survive from ``layer`` on (0: the input).
        """
        embed = self.model.get_input_embeddings()
        batch, tokens, width = visual.shape
        at = int((ids[0] == self.image_id).nonzero())
        end = ids.shape[1] - 1 + tokens
        survives = torch.zeros(batch, tokens, dtype=torch.bool).scatter(1, keep, True)
        places = at + torch.arange(tokens).expand(batch, -1)
        if layer == 0:
            visual = visual.gather(1, keep[..., None].expand(-1, -1, width))
            places = at + keep
        inputs = torch.cat([embed(ids[:, :at]), visual, embed(ids[:, at + 1 :])], dim=1)
        before = torch.arange(at).expand(batch, -1)
        after = torch.arange(at + tokens, end).expand(batch, -1)
        positions = torch.cat([before, places, after], dim=1)
        cache = transformers.DynamicCache()
        length, words = inputs.shape[1], torch.empty(batch, 0, dtype=torch.long)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for count in range(MAX_WORDS):
            early = causal.expand(batch, 1, -1, -1)
            late = early.clone()
            if layer > 0:
                late[..., at : at + tokens] &= survives[:, None, None, :]
                late |= torch.eye(length, dtype=torch.bool) if count == 0 else False
            states = self._run_layers(inputs, early, late, layer, positions, cache)
            words = torch.cat([words, self.model.lm_head(states[:, -1:]).argmax(-1)], dim=1)
            if (words == self.eos_id).any(1).all():
                break
            inputs, positions = embed(words[:, -1:]), torch.full((batch, 1), end + count)
            length += 1
            causal = torch.ones(1, length, dtype=torch.bool)
        return words

    def _run_layers(
        self,
        inputs: torch.Tensor,
        early: torch.Tensor,
        late: torch.Tensor,
        first: int,
        positions: torch.Tensor,
        cache: transformers.DynamicCache,
    ) -> torch.Tensor:
        """Final states; mask ``late`` holds from layer ``first`` on, ``early`` before it."""

        def swap(
            _module: torch.nn.Module, positional: tuple[object, ...], named: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            return positional, named | {"attention_mask": late}

        decoder = self.model.model.language_model
        hooks = [layer.register_forward_pre_hook(swap, with_kwargs=True) for layer in decoder.layers[first:]]
        states = decoder(
            inputs_embeds=inputs,
            attention_mask=early,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        for hook in hooks:
            hook.remove()
        return states

    def answers(
        self,
        keep: torch.Tensor,
        layer: int = 0,
        pictures: np.ndarray | None = None,
    ) -> Answers:
        """Right or wrong by question id.

        ``keep`` [pictures, kept] are the surviving tokens of each picture; ``pictures`` says which
        picture is shown instead of each (None: the right one).
        """
        groups: dict[int, list[Question]] = defaultdict(list)
        prompts = {q.id: self.tokenizer(format_prompt(q.question)).input_ids for q in self.questions}
        for question in self.questions:
            groups[len(prompts[question.id])].append(question)
        result: Answers = {}
        for group in groups.values():
            for start in range(0, len(group), BATCH):
                asked = group[start : start + BATCH]
                rows = [self.row_of[question.image] for question in asked]
                ids = torch.tensor([prompts[question.id] for question in asked])
                visual = self.visual[rows if pictures is None else pictures[rows]]
                kept = keep[rows]
                for question, words in zip(
                    asked, self.greedy(ids, visual, kept, layer).tolist(), strict=True
                ):
                    if self.eos_id in words:
                        words = words[: words.index(self.eos_id)]
                    result[question.id] = score(self.tokenizer.decode(words), question.answer)
        return result


def by_type(questions: list[Question], answers: Answers) -> dict[str, float]:
    """Accuracy per question type and over all questions."""
    table: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        table[question.type].append(answers[question.id])
        table["all"].append(answers[question.id])
    return {kind: round(float(np.mean(right)), 4) for kind, right in table.items()}


def measure(kept: int, layer: int, seeds: int) -> dict[str, object]:
    questions = load_questions()
    begin = time.time()
    evaluator = Evaluator(questions)
    pictures, tokens = evaluator.visual.shape[:2]
    everything = torch.arange(tokens)
    record: dict[str, object] = {
        "questions": len(questions),
        "pictures": pictures,
        "visual_tokens": tokens,
        "kept": kept,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "dense": by_type(questions, evaluator.answers(everything.expand(pictures, -1))),
    }
    blind, pruned, late = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        other = np.roll(np.arange(pictures), int(rng.integers(1, pictures)))
        blind.append(evaluator.answers(everything.expand(pictures, -1), pictures=other))
        choice = torch.from_numpy(rng.random((pictures, tokens))).topk(kept, dim=1).indices
        choice = choice.sort(dim=1).values
        pruned.append(evaluator.answers(choice))
        late.append(evaluator.answers(choice, layer=layer))
    for name, results in (
        ("blind", blind),
        ("random_input", pruned),
        (f"random_after_layer_{layer}", late),
    ):
        runs = [by_type(questions, answers) for answers in results]
        record[name] = {k: round(float(np.mean([run[k] for run in runs])), 4) for k in runs[0]}
        record[f"{name}_seeds"] = [run["all"] for run in runs]
    record["seconds"] = round(time.time() - begin, 1)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept", type=int, default=16, help="16 of 144 tokens are 11 percent")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("records/evaluation.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.kept, arguments.layer, cache=arguments.seeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
