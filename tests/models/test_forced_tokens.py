"""Decode steps are compared under one text: rounding must not decide which texts are compared."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import llava, llava_scenarios

import pruneopt
from pruneopt.testing.insertion import LAYER, InsertionCase, check_insertion
from pruneopt.testing.masking import difference, forward, generate


def test_forced_tokens_are_decoded_whatever_the_logits_say() -> None:
    """Logits of a forced run are those of one pass over the forced text."""
    model, inputs = llava(), llava_scenarios()["right"]
    inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    free, _ = generate(model, inputs)
    told = torch.cat([inputs["input_ids"], 3 + torch.arange(24).view(3, 8)], 1)
    assert not (free[:, -8:] == told[:, -8:]).any()
    said, steps = generate(model, inputs, forced=told)
    assert torch.equal(said, told)
    whole = forward(model, {**inputs, "input_ids": told, "attention_mask": torch.ones_like(told)}).logits
    assert difference(steps, whole[:, -9:-1].transpose(0, 1)) < 1e-5


def tied(attention: str) -> Any:
    """Every token has a twin with the same logit, of which greedy decoding takes the first."""
    model = llava(attention)
    with torch.no_grad():
        model.lm_head.weight[45:] = model.lm_head.weight[:45]
    return model


class Nudged:
    """Pruning on a processor that rounds the logits of the twins up by one part in a million."""

    def __init__(self, model: Any, spec: Any):
        self._handle = pruneopt.apply(model, spec)
        self.run = self._handle.run
        nudge = torch.cat([torch.zeros(45), torch.full((45,), 1e-6)])
        self._hook = model.lm_head.register_forward_hook(lambda module, args, logits: logits + nudge)

    def remove(self) -> None:
        self._hook.remove()
        self._handle.remove()


def test_a_flip_between_tied_tokens_is_no_difference() -> None:
    """The pruned run decodes the twins of what the masked model would, which gives other texts."""
    inputs = llava_scenarios()["left"]
    case = InsertionCase("ties", tied, {"left": inputs}, specs=(LAYER,), attention=("sdpa",), apply=Nudged)
    model = tied("sdpa")
    plain, _ = generate(model, inputs)
    handle = Nudged(model, LAYER)
    nudged, _ = generate(model, inputs)
    handle.remove()
    assert (plain[:, -8:] < 45).all() and (nudged[:, -8:] >= 45).all()
    [result] = check_insertion(case, ["oracle"])
    assert result.problem == ""
