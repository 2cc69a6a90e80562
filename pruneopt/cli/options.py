"""Options that several commands share, and the words that their values are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pruneopt.errors import ModelError

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, such as budget.keep=0.25", show_default=False)
]
Method = Annotated[str, typer.Option("--method", "-m", help="a method name or the path of a spec")]
Names = Annotated[str | None, typer.Option(help="names or patterns, separated by commas; all if left out")]
Device = Annotated[str, typer.Option(help="where the model runs: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]
Attention = Annotated[str, typer.Option(help="the model's own attention setting: eager, sdpa, ...")]
Threads = Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")]


def split(text: str | None) -> list[str] | None:
    """Words separated by commas, or None when there is none."""
    return [word.strip() for word in (text or "").split(",") if word.strip()] or None


def counts(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas. Raises BadParameter for anything else."""
    try:
        found = [int(word) for word in split(text) or []]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers from 1, such as 64,144")
    return found


def budgets(text: str) -> list[float | int]:
    """Ratios or counts separated by commas. Raises BadParameter, or SpecError for one out of range."""
    from pruneopt.problems.budget import Budget

    try:
        found = [float(word) for word in split(text) or []]
    except ValueError:
        found = []
    if not found:
        raise typer.BadParameter(f"{text!r} is not a list of ratios or counts, such as 0.5,64")
    kept = [int(value) if value > 1 and value.is_integer() else value for value in found]
    return [Budget(keep=value).keep for value in kept]


@dataclass(frozen=True)
class Machine:
    """Where and how a model runs; checked when it is made, before any model is loaded.

    Raises ModelError for a device that is not there, an unknown dtype or attention setting.
    """

    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        from pruneopt.models.load import attention_of, device_of, dtype_of

        device_of(self.device), dtype_of(self.dtype), attention_of(self.attention)

    def load(self, source: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
        """Model on its device, and processor; `demo` is the embedded model.

        Raises ModelError for what cannot be loaded or does not fit on the device.
        """
        from pruneopt.models.load import load_model, quiet

        quiet()  # its bars would stand between our own lines
        if source == "demo":
            model, processor = self._demo()
        else:
            model, processor = load_model(
                source, self.dtype, attention=self.attention, trust_remote_code=trust_remote_code
            )
        try:
            return model.to(self.device), processor
        except Exception as error:
            raise ModelError(f"model {source!r} cannot be moved to {self.device}: {error}") from error

    def _demo(self) -> tuple[Any, Any]:
        from pruneopt.demo.assets import load_model
        from pruneopt.models.load import dtype_of

        try:
            return load_model(dtype_of(self.dtype), self.attention)
        except Exception as error:
            raise ModelError(f"the embedded model cannot be loaded: {error}") from error
