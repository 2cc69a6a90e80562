"""What numbers depend on beside the code: versions, machine, threads, load, commit.

This is the only description of a machine that records hold.  Records are never edited, so the words below are
also those of older forms: prefill records named versions without `packages`, targets held one sentence.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pruneopt

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "POT", "cvxpy", "highspy", "omegaconf")


def environment(device: str = "cpu", *, commit: str | None = None) -> dict[str, Any]:
    """Versions, machine, threads, load of the last minute, commit and whether the tree was dirty.

    Parameters
    ----------
    device : str
        Where the work runs; a CUDA device is named by its card.
    commit : str, optional
        What the code is, where it runs without its repository; otherwise git is asked.
    """
    import torch

    return {
        "pruneopt": pruneopt.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        **(_commit() if commit is None else {"commit": commit, "dirty": None}),
    }


def setting(model: Any) -> dict[str, str]:
    """What decides the answers of a model, and its speed, beside its weights."""
    return {
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config._attn_implementation),
    }


def use_threads(count: int) -> None:
    """Let torch use `count` threads, or all cores the way a user's process would when it is 0."""
    import torch

    torch.set_num_threads(count or os.cpu_count() or 1)


def package(found: Mapping[str, Any], name: str) -> str:
    """The version of a package in a recorded environment."""
    return str(found.get("packages", found)[name])


def machine(found: Mapping[str, Any] | str) -> str:
    """A recorded environment as one sentence without its full stop."""
    if isinstance(found, str):
        return found
    return (
        f"{found['machine']}, {found['cores']} cores, {found['threads']} torch threads, "
        f"load {found['load']:.1f} at the start"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": changed}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
