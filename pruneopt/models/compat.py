"""What differs between transformers versions: the only module that looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pruneopt.errors import ModelError

OLDEST, NEXT_MAJOR = (5, 17), (6, 0)


def check_transformers() -> None:
    """Raise ModelError unless transformers is a version that the adapters were tested with."""
    import transformers

    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not OLDEST <= found < NEXT_MAJOR:
        raise ModelError(
            f"transformers {transformers.__version__} is not supported: the adapters look for the layer and "
            "mask interfaces of 5.17 up to 5.x; install a version in that range"
        )


def effective_generation(model: Any, given: Mapping[str, Any]) -> Any:
    """The generation config that `generate` will use: keywords, then the config given, then the model's own.

    given: arguments of the call by name.
    """
    settings = {name: value for name, value in given.items() if name != "generation_config"}
    found, _ = model._prepare_generation_config(given.get("generation_config"), **settings)
    return found


def reach(config: Any, attention: Any, *, layer: int) -> int | None:
    """How many columns back a decoder layer looks, itself included; None for all of them.

    Attention modules that know their own window say it (Qwen2, Qwen3); others take it from the config for
    every layer (Mistral), whatever `layer_types` says.  Raises ModelError for layers of another kind.
    """
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds else "full_attention"
    if kind == "chunked_attention":
        return int(config.attention_chunk_size)
    if kind not in ("full_attention", "sliding_attention"):
        raise ModelError(
            f"decoder layer {layer} is of type {kind!r}; only full and sliding attention can be cut. Cut "
            "after it, or use another model"
        )
    if kind == "sliding_attention":
        found = config.sliding_window
    else:
        found = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    return None if found is None else int(found)


def replays_hooks(layer: nn.Module) -> bool:
    """Whether the backward pass will run the hooks of a layer again: older transformers checkpoint `__call__`
    with the hooks in it, newer ones `forward` alone.
    """
    checkpointing = bool(getattr(layer, "gradient_checkpointing", False)) and layer.training
    return checkpointing and type(layer).__call__ is not nn.Module.__call__


class CacheLengths:
    """What `create_causal_mask` asks of a cache, for layers that hold `past` columns."""

    def __init__(self, past: int):
        self.past = past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past + query_length, 0


def causal_mask(config: Any, hidden: Tensor, *, valid: Tensor | None, past: int) -> Any:
    """The mask that this model's attention backend wants, for keys `valid` `[B, past + q]` (None: all).

    `hidden` `[B,q,D]` gives batch, query length, dtype and device.
    """
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=valid,
        past_key_values=CacheLengths(past),  # type: ignore[arg-type]
        position_ids=None,
    )


def window_order(grid: Tensor, merge: int, *, window: int, patch: int) -> Tensor:
    """Order in which Qwen2.5-VL's encoder holds the merged tokens of images of size `grid` `[n,3]`."""
    from transformers.vision_utils import get_vision_window_index

    found = get_vision_window_index(grid, spatial_merge_size=merge, window_size=window, patch_size=patch)
    return found[0]
