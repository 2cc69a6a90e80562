"""Calls and generation modes that pruning would make silently wrong: each is refused with its alternative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor

from pruneopt.errors import ModelError
from pruneopt.problems.selection import Selection
from pruneopt.spec.schema import Spec, StageSpec


def _given(value: Any) -> bool:
    return value is not None


_GUESSED = "guessed tokens would take part in the choice"

# generation setting, when it is refused, why and what to do instead
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("prefill_chunk_size", _given, "a chunk does not hold the whole prompt; pass prefill_chunk_size=None"),
    ("assistant_model", _given, f"{_GUESSED}; decode without an assistant"),
    ("prompt_lookup_num_tokens", _given, f"{_GUESSED}; leave it out"),
    ("assistant_early_exit", _given, f"{_GUESSED}; leave it out"),
    ("use_mtp", bool, f"{_GUESSED}; leave it out"),
    (
        "guidance_scale",
        lambda value: value not in (None, 1),
        "its second prompt has no picture to prune; leave it out",
    ),
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


def refuse_generation(settings: Any, given: Mapping[str, Any]) -> None:
    """Raise ModelError for a `generate` call in a mode that cannot be used, naming the alternative.

    settings: the generation config that counts, from wherever it came.  given: arguments of the call by name.
    """
    for name, bad, cure in _REFUSED:
        if bad(getattr(settings, name, given.get(name))):
            raise ModelError(f"generate({name}=...) cannot be used while pruning: {cure}")


def refuse_batches(*_: Any, **__: Any) -> NoReturn:
    """Stands in for continuous batching, whose paged cache packs prompts into one row."""
    raise ModelError(
        "continuous batching (generate_batch) cannot be used while pruning: its paged cache packs prompts "
        "into one row; use generate with a padded batch"
    )


def refuse_call(named: Mapping[str, Any]) -> None:
    """Raise ModelError for arguments of the model, by name, that assume the unpruned length."""
    if named.get("labels") is not None:
        raise ModelError(
            "labels cannot be used while pruning: logits no longer line up with the prompt; compute the loss "
            "from run.kept yourself, or train without pruning"
        )
    positions = named.get("logits_to_keep")
    if isinstance(positions, Tensor) and positions.dim() > 0:
        raise ModelError(
            "logits_to_keep as a tensor of positions cannot be used while pruning; give a number of last "
            "positions instead"
        )


def refuse_selection(spec: Spec, stage: StageSpec, *, selection: Selection) -> None:
    """Raise ModelError for a selection that asks for more than its insertion, or its positions, can apply."""
    asked = {"merge": selection.merge is not None, "reordering": selection.rank is not None}
    for what, wanted in asked.items():
        if wanted and what not in stage.insertion.applies:
            raise ModelError(
                f"a step of this method asks for a {what}, and {stage.insertion.name} can apply only: "
                f"{', '.join(sorted(stage.insertion.applies))}; leave the step out, or cut elsewhere"
            )
    if selection.rank is not None and spec.positions_at(stage) != "compact":
        raise ModelError(
            "a step orders the kept tokens anew, which needs positions=compact: with positions=keep "
            "every token holds its place; override positions=compact"
        )
