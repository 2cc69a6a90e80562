"""The embedded model and its evaluation set; nothing here imports transformers on import."""

from pruneopt.demo.assets import (
    Question,
    format_prompt,
    load_inputs,
    load_model,
    load_questions,
    model_path,
    sample,
    samples,
    score,
)

__all__ = [
    "Question",
    "format_prompt",
    "load_inputs",
    "load_model",
    "load_questions",
    "model_path",
    "sample",
    "samples",
    "score",
]
