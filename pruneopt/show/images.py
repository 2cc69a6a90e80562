"""Pictures and prompts that users hand in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pruneopt.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: str | Path) -> Image:
    """An RGB picture, fully decoded.

    Parameters
    ----------
    path
        Of the file.

    Returns
    -------
    PIL.Image.Image
        It has pixels.

    Raises
    ------
    InputError
        When the file is missing, is not a readable picture, or has no pixels.
    """
    from PIL import Image as pil

    file = Path(path)
    if not file.is_file():
        raise InputError(f"image {str(path)!r} does not exist; give the path of a picture file")
    if file.stat().st_size == 0:
        raise InputError(f"image {str(path)!r} is an empty file; give a picture with pixels")
    try:
        with pil.open(file) as opened:
            picture = opened.convert("RGB")
    except Exception as error:
        raise InputError(
            f"image {str(path)!r} cannot be read ({type(error).__name__}); give a PNG, JPEG or WebP file"
        ) from error
    if 0 in picture.size:
        raise InputError(f"image {str(path)!r} has size {picture.size[0]}x{picture.size[1]}; it needs pixels")
    return picture


def asked(source: str, image: str, *, prompt: str) -> tuple[Image, str]:
    """The picture and the prompt for a model, known to be good before the model is loaded.

    Parameters
    ----------
    source
        A folder, a hub id, or `demo`, whose own sample is used when no image is given.
    image
        Path of a picture, or empty.
    prompt
        What to ask about it.

    Returns
    -------
    tuple
        The picture, and the prompt as the model wants it.

    Raises
    ------
    InputError
        Without a picture, or with an empty prompt.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; ask something about the picture")
    if source != "demo":
        if not image:
            raise InputError("--model needs --image, a picture file")
        return open_image(image), prompt
    from pruneopt.demo.assets import format_prompt, sample

    if not image:
        return open_image(sample().image), format_prompt(sample().question)
    if "<image>" in prompt:
        raise InputError("leave '<image>' out of the prompt; the picture is put in front of it")
    return open_image(image), format_prompt(prompt)
