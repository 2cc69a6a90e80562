"""How close a pruned model stays to the dense one, without labels.

The dense model answers greedily.  Both models then read the prompt and are forced through that answer, token
by token, so that their next-token distributions are of the same text: at the end of the prompt and after
every forced token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """What the dense model said to a batch of prompts.

    tokens: `[B,T]` its tokens.  steps: `[B]` how many of them count, the end of the answer included.
    log_p: `[B,T,V]` log-probabilities of the next token before each of them.
    """

    tokens: Tensor
    steps: Tensor
    log_p: Tensor

    @property
    def counted(self) -> Tensor:
        """`[B,T]` bool: steps that count."""
        return torch.arange(self.tokens.shape[1], device=self.steps.device) < self.steps[:, None]


@dataclass(frozen=True)
class Fidelity:
    """One number a prompt `[B]`.

    kl: mean over the steps of `KL(dense || pruned)`, in nats.  first: the same at the end of the prompt.
    agree: share of the steps at which the most likely token is that of the dense model; 1 means that the
    greedy answer is the same, word for word.
    """

    kl: Tensor
    first: Tensor
    agree: Tensor


def answered(model: Any, inputs: Any, *, tokens: int = 9) -> Answer:
    """The greedy answer of a model, to be run without pruning; at most `tokens` tokens.

    Nine are the end of the prompt and eight forced steps.
    """
    said = _generate(model, inputs, tokens=tokens)
    new = said.sequences[:, inputs["input_ids"].shape[1] :]
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=new.device).reshape(-1)
    ended = torch.isin(new, ends).int().cumsum(1) - torch.isin(new, ends).int()
    return Answer(new, (ended == 0).sum(1), _log_p(said))


def fidelity(model: Any, inputs: Any, *, dense: Answer) -> Fidelity:
    """How a model, to be run inside `prune`, follows the dense answer to the same inputs."""
    said = _generate(model, inputs, tokens=dense.tokens.shape[1], force=dense.tokens)
    log_p, counted = _log_p(said), dense.counted
    width = min(log_p.shape[1], dense.log_p.shape[1])
    log_p, log_q, counted = dense.log_p[:, :width], log_p[:, :width], counted[:, :width]
    kl = (log_p.exp() * (log_p - log_q)).sum(2).masked_fill(~counted, 0)
    same = (log_q.argmax(2) == log_p.argmax(2)) & counted
    steps = counted.sum(1)
    return Fidelity(kl.sum(1) / steps, kl[:, 0], same.sum(1) / steps)


class _Force:
    """A logits processor that lets only the given tokens through."""

    def __init__(self, tokens: Tensor, after: int) -> None:
        self.tokens, self.after = tokens, after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.after
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, self.tokens[:, step : step + 1], 0)


def _generate(model: Any, inputs: Any, *, tokens: int, force: Tensor | None = None) -> Any:
    processors = [] if force is None else [_Force(force, inputs["input_ids"].shape[1])]
    return model.generate(
        **inputs, do_sample=False, max_new_tokens=tokens, logits_processor=processors,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip


def _log_p(said: Any) -> Tensor:
    return torch.stack([logits.float().log_softmax(1) for logits in said.logits], 1)
