"""The reference of all insertion tests: an untouched model that hides the removed keys by explicit masks.

Nothing here uses any code of the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.testing.insertion_case import STEPS


def hidden_keys(kept: Mapping[int, Sequence[Sequence[int]]], layer: int) -> Sequence[Sequence[int]] | None:
    """Survivors that `layer` may see; None before the first cut."""
    cuts = [cut for cut in sorted(kept) if cut <= layer]
    return kept[cuts[-1]] if cuts else None


@contextmanager
def masked(
    layers: Sequence[nn.Module], kept: Mapping[int, Sequence[Sequence[int]]], *, real: Tensor
) -> Iterator[None]:
    """Hide, in an untouched model, every prompt key that is not in `kept` from its layer on.

    `real` `[B,L]` bool marks the prompt's real columns; decoded columns are always visible.
    """
    batch, columns = real.shape

    def hook(index: int) -> Callable[..., Any]:
        rows = hidden_keys(kept, index)
        assert rows is not None
        visible = torch.zeros(batch, columns, dtype=torch.bool)
        for row, positions in enumerate(rows):
            visible[row, list(positions)] = True
        visible &= real.cpu()

        def before(  # noqa: PLR0917 - a hook of torch
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length(index))
            new = hidden.shape[1]
            keys = torch.cat([visible, torch.ones(batch, past + new - columns, dtype=torch.bool)], 1)
            causal = torch.arange(past + new)[None, :] <= torch.arange(past, past + new)[:, None]
            allowed = (keys[:, None, None, :] & causal).to(hidden.device)
            mask = torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~allowed, torch.finfo(hidden.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        return before

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            if hidden_keys(kept, index) is not None:
                hooks.enter_context(layer.register_forward_pre_hook(hook(index), with_kwargs=True))
        yield


def real_columns(inputs: Mapping[str, Any], times: int = 1) -> Tensor:
    """`[B,L]` bool from the padding mask of a batch, each row `times` over."""
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return mask.bool().repeat_interleave(times, dim=0)


def generate(
    model: Any, inputs: Mapping[str, Any], *, forced: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Sequences, and the raw logits of each new token `[steps,B,V]`.

    `forced` `[B,L+steps]` are the sequences of another run: its tokens are decoded, whatever the logits say.
    Logits of two runs can only be compared under the same text; rounding may flip the choice between two
    tokens that are nearly tied.
    """
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, **options}
    if forced is not None:
        told = forced.tolist()
        options["prefix_allowed_tokens_fn"] = lambda row, ids: [told[row][len(ids)]]
    copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with torch.no_grad():
        out = model.generate(**copied, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences, torch.stack(out.logits)


def forward(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    with torch.no_grad():
        return model(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}, **options)


def difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    gap = (found.float() - wanted.float()).abs()
    return float("inf") if gap.isnan().any() else float(gap.max())
