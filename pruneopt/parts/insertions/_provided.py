"""Which signals exist where (base names)."""

from __future__ import annotations

GEOMETRY = frozenset(
    {"xy", "grid", "group", "time", "tile", "size", "importance", "patches", "visual_index", "text_index"}
)
ENCODER = frozenset(
    {
        "encoder_features", "encoder_keys", "encoder_queries", "cls_query", "cls_key", "cls_feature",
        "cls_attention", "received_attention", "encoder_attention", "clip_features", "clip_text",
    }
)  # fmt: skip
ENTRY = frozenset(
    {
        "features", "text_features", "text_mask", "embeddings", "text_embeddings",
        "start_embeddings", "start_mask",
    }
)  # fmt: skip
DECODER = frozenset(
    {
        "hidden_in", "attn_out", "post_attention_norm", "hidden_out", "hidden_normed",
        "text_hidden_normed", "keys", "text_keys", "attention_last", "attention_text", "attention_visual",
        "lookahead_last", "lookahead_text", "lookahead_visual", "lookahead_keys",
        "attention_logits", "transition", "transition_abs",
    }
)  # fmt: skip
