"""Loading supported models and turning a picture and a prompt into inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruneopt.errors import InputError, ModelError, nearest
from pruneopt.models.base import unsupported
from pruneopt.registry import registry

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def quiet() -> None:
    """Switch the progress bars of transformers off."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def dtype_of(name: str) -> torch.dtype:
    """A torch dtype by name. Raises ModelError for others than float32, bfloat16, float16."""
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}{nearest(name, DTYPES)}")
    return DTYPES[name]


def device_of(name: str) -> torch.device:
    """A torch device by name. Raises ModelError for one that this machine has not, with those it has."""
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name == "cuda" and len(there) > 1:
        return torch.device(name)
    if name not in there:
        raise ModelError(f"no device {name!r} on this machine; it has: {', '.join(there)}")
    return torch.device(name)


def attention_of(name: str) -> str:
    """`name` if transformers knows this attention setting (or it is a kernel on the hub, `owner/name`).

    Raises ModelError with the known ones otherwise.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]
    if name not in known and "/" not in name:
        raise ModelError(f"unknown attention setting {name!r}; known: {', '.join(sorted(known))}")
    return name


def load_model(
    source: str,
    dtype: str = "float32",
    *,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Model (in evaluation mode) and processor from a folder or a hub id; safetensors only.

    Raises ModelError for an unknown dtype, something that cannot be loaded, or a family without adapter.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    kind = dtype_of(dtype)
    here = Path(source).exists()
    options: dict[str, Any] = {"local_files_only": here, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise ModelError(
            f"model {source!r} cannot be loaded ({_first_line(error)}); give a folder with a config.json, "
            "a hub id that this machine can reach, or 'demo'"
        ) from error
    if config.model_type not in registry("models"):
        raise unsupported(f"model {source!r}", config.model_type)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=kind, attn_implementation=attention, use_safetensors=True, **options
        )
        processor = AutoProcessor.from_pretrained(source, **options)
    except Exception as error:
        raise ModelError(f"model {source!r} cannot be loaded: {_first_line(error)}") from error
    return model.eval(), processor


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def build_inputs(processor: Any, image: Image, *, prompt: str) -> Any:
    """Inputs of one picture and one prompt, through the chat template where the model has one.

    Raises InputError for a prompt that asks for another number of pictures.
    """
    token = getattr(processor, "image_token", "<image>")
    if prompt.count(token) > 1:
        raise InputError(f"the prompt has {prompt.count(token)} places {token!r} for one picture; leave one")
    if token not in prompt:
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            prompt = f"{token} {prompt}"
    return processor(images=[image], text=[prompt], return_tensors="pt")
