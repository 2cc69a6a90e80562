"""Calls and generation modes that pruning would make silently wrong: each is refused with its alternative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pruneopt.errors import ModelError


def _given(value: Any) -> bool:
    return value is not None


# generation setting, when it is refused, why and what to do instead
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("prefill_chunk_size", _given, "a chunk does not hold the whole prompt; pass prefill_chunk_size=None"),
    ("assistant_model", _given, "guessed tokens would take part in the choice; decode without an assistant"),
    ("prompt_lookup_num_tokens", _given, "guessed tokens would take part in the choice; leave it out"),
    ("assistant_early_exit", _given, "guessed tokens would take part in the choice; leave it out"),
    (
        "cache_implementation",
        lambda value: value not in (None, "dynamic", "dynamic_full", "offloaded"),
        "its layers have one length; use the default dynamic cache",
    ),
    (
        "use_cache",
        lambda value: value is False,
        "tokens would be chosen anew at every step; keep the cache on",
    ),
)


def refuse_generation(model: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise ModelError for a `generate` call in a mode that cannot be used, naming the alternative."""
    config = kwargs.get("generation_config")
    config = config if config is not None else getattr(model, "generation_config", None)
    for name, bad, cure in _REFUSED:
        value = kwargs[name] if name in kwargs else getattr(config, name, None)
        if bad(value):
            raise ModelError(f"generate({name}=...) cannot be used while pruning: {cure}")


def refuse_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook of the model: raise ModelError for arguments that assume the unpruned length."""
    if kwargs.get("labels") is not None:
        raise ModelError(
            "labels cannot be used while pruning: logits no longer line up with the prompt; compute the loss "
            "from run.kept yourself, or train without pruning"
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor) and kwargs["logits_to_keep"].dim() > 0:
        raise ModelError(
            "logits_to_keep as a tensor of positions cannot be used while pruning; give a number of last "
            "positions instead"
        )
