"""Fidelity against logits of one pass over the same text."""

from __future__ import annotations

import pytest
import torch

from pruneopt import load_spec, prune
from pruneopt.demo.assets import load_inputs, load_model, load_questions
from pruneopt.lab.fidelity import Answer, answered, fidelity


@pytest.fixture(scope="module")
def told():
    """The embedded model in float64, inputs of three questions of one length, and its dense answers."""
    model, processor = load_model(torch.float64)
    inputs = load_inputs(load_questions()[:3], processor).to(torch.float64)
    with torch.inference_mode():
        return model, inputs, answered(model, inputs)


def test_an_answer_counts_up_to_its_end(told) -> None:
    model, _, dense = told
    end = model.generation_config.eos_token_id
    for row, steps in zip(dense.tokens.tolist(), dense.steps.tolist(), strict=True):
        assert end in row and row.index(end) == steps - 1
    assert dense.counted.sum(1).equal(dense.steps)
    assert dense.log_p.exp().sum(2).allclose(torch.ones(()), atol=1e-5)
    assert dense.log_p.argmax(2)[dense.counted].equal(dense.tokens[dense.counted])


def test_forced_steps_are_those_of_one_pass_over_prompt_and_answer(told) -> None:
    """The last logits of prompts that are grown by hand, token by token."""
    model, inputs, dense = told
    swapped = Answer(dense.tokens.roll(1, 0), dense.steps.roll(1, 0), dense.log_p.roll(1, 0))
    with torch.inference_mode():
        found = fidelity(model, inputs, dense=swapped)
        for b in range(3):
            steps = int(swapped.steps[b])
            ids, mask = inputs["input_ids"][b : b + 1], inputs["attention_mask"][b : b + 1]
            kl, same = [], []
            for t in range(steps):
                grown = torch.cat([ids, swapped.tokens[b : b + 1, :t]], 1)
                seen = torch.cat([mask, torch.ones_like(swapped.tokens[b : b + 1, :t])], 1)
                logits = model(
                    input_ids=grown, attention_mask=seen, pixel_values=inputs["pixel_values"][b : b + 1]
                ).logits[0, -1]
                p, q = swapped.log_p[b, t].double(), logits.double().log_softmax(0)
                kl.append(float((p.exp() * (p - q)).sum()))
                same.append(float(q.argmax() == p.argmax()))
            assert float(found.kl[b]) == pytest.approx(sum(kl) / steps, rel=1e-3, abs=1e-5)
            assert float(found.first[b]) == pytest.approx(kl[0], rel=1e-3, abs=1e-5)
            assert float(found.agree[b]) == pytest.approx(sum(same) / steps)


def test_the_dense_model_is_true_to_itself_and_few_random_tokens_are_not(told) -> None:
    model, inputs, dense = told
    with torch.inference_mode():
        same = fidelity(model, inputs, dense=dense)
        with prune(model, load_spec("random", ["budget.keep=2"])):
            far = fidelity(model, inputs, dense=dense)
        with prune(model, load_spec("random", ["budget.keep=144"])):
            whole = fidelity(model, inputs, dense=dense)
    for each in (same, whole):
        assert each.kl.abs().max() < 1e-6 and each.agree.equal(torch.ones(3))
    assert (far.kl >= 0).all() and far.kl.max() > 0.05
