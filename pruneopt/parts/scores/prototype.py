"""Likeness to prototypes of redundant tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.errors import InputError, SpecError
from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.tensors import unit_rows


@dataclass(frozen=True)
class PrototypeSimilarity(Score):
    """Minus the best likeness to a codebook of redundant tokens, `[B,N]` float32; higher is kept.

    `codebook` is a safetensors file with one tensor `prototypes` `[P,D]`, made for one model by
    `pruneopt.tuning.codebook`; `sha256` (or a prefix of it), if given, must match the file.  `reduce`: `max`
    takes the largest cosine, `double_softmax` the largest product of a softmax over tokens and one over
    prototypes, `single_softmax` the latter alone.  Source: "Beyond Intermediate States", online scoring.
    """

    name: ClassVar[str] = "prototype"
    source: ClassVar[str] = "Beyond Intermediate States (arXiv 2503.20540), as released"
    codebook: str = param("", doc="path of the calibration file")
    sha256: str = param("", doc="expected digest, or its first characters")
    reduce: str = param("max", choices=("max", "double_softmax", "single_softmax"), doc="one score per token")
    signal: str = param("features", doc="tokens in the space of the codebook")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        if not self.codebook:
            raise SpecError(
                "prototype.codebook is empty; build one for your model (docs/methods/codebook.md) and set "
                "problem.scores.redundancy.codebook=PATH"
            )
        tokens = signals[self.signal]
        prototypes = load_codebook(self.codebook, self.sha256)
        if prototypes.shape[1] != tokens.shape[2]:
            raise SpecError(
                f"codebook {self.codebook!r} has width {prototypes.shape[1]}, the tokens {tokens.shape[2]}; "
                "it was made for another model"
            )
        cosine = unit_rows(tokens.float()) @ unit_rows(prototypes.to(tokens.device)).T
        if self.reduce == "max":
            return -cosine.amax(2)
        share = cosine.softmax(2)
        if self.reduce == "double_softmax":
            share = share * cosine.masked_fill(~signals.mask[:, :, None], -torch.inf).softmax(1)
        return -share.amax(2)


@lru_cache(maxsize=8)
def load_codebook(path: str, sha256: str = "") -> Tensor:
    """Prototypes `[P,D]` float32 of a codebook file; InputError for a file that is missing or not one."""
    from safetensors.torch import load

    file = Path(path)
    if not file.is_file():
        raise InputError(f"codebook {path!r} does not exist")
    blob = file.read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if not digest.startswith(sha256.lower()):
        raise InputError(f"codebook {path!r} has SHA-256 {digest}, expected {sha256}")
    try:
        prototypes = load(blob)["prototypes"].float()
    except Exception as error:
        raise InputError(f"codebook {path!r} is not a safetensors file with `prototypes`: {error}") from error
    if prototypes.dim() != 2 or not len(prototypes) or not prototypes.isfinite().all():
        raise InputError(
            f"codebook {path!r}: `prototypes` must be finite [P,D], got {list(prototypes.shape)}"
        )
    return prototypes
