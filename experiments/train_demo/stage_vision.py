"""Stage B: the vision tower learns to name its patches and to produce the oracle tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from model import TOKEN_SCALE, OracleTokens, VisionHeads
from packing import LabelBatch, TextBatch, label_batch, pack_texts
from render import Renderer
from scenes import Scene, sample_dense_scene, sample_scene
from torch.nn import functional
from vocabulary import ATTRIBUTES, CLASS_WORDS, TONES

FIRST_TONE = len(CLASS_WORDS) - len(TONES)


@dataclass
class VisionBatch:
    """``pixels`` [batch, 3, size, size] in -1 to 1 with the labels of the patches."""

    pixels: torch.Tensor
    labels: LabelBatch
    text: TextBatch | None


def to_pixels(images: list[np.ndarray]) -> torch.Tensor:
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (stacked.float() / 127.5 - 1).contiguous()


def vision_batch(
    renderer: Renderer, rng: np.random.Generator, batch: int, dense_share: float, asked: bool
) -> VisionBatch:
    scenes: list[Scene] = []
    for _ in range(batch):
        crowded = rng.random() < dense_share
        scenes.append(sample_dense_scene(rng) if crowded else sample_scene(rng))
    pixels = to_pixels([renderer.draw(scene, rng) for scene in scenes])
    return VisionBatch(pixels, label_batch(scenes), pack_texts(scenes, rng) if asked else None)


def presence_targets(labels: LabelBatch) -> torch.Tensor:
    """Which classes and attributes occur in each picture, [batch, classes + attributes]."""
    classes = functional.one_hot(labels.classes, len(CLASS_WORDS)).amax(1)
    attributes = functional.one_hot(labels.attributes, len(ATTRIBUTES)).amax(1)
    return torch.cat([classes, attributes], dim=1).float()


def dense_loss(
    features: torch.Tensor, pooled: torch.Tensor | None, heads: VisionHeads, labels: LabelBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Patch and presence losses on ``features`` [batch, 1 + patches, width], CLS first."""
    classes = heads.classes(features[:, 1:])
    attributes = heads.attributes(features[:, 1:])
    is_item = labels.classes < FIRST_TONE
    weight = torch.where(is_item, 1.0, 0.2)
    total = weight.sum()
    by_class = functional.cross_entropy(classes.mT, labels.classes, reduction="none")
    by_attribute = functional.cross_entropy(attributes.mT, labels.attributes, reduction="none")
    present = presence_targets(labels)
    presence = functional.binary_cross_entropy_with_logits(heads.presence(features[:, 0]), present)
    if pooled is not None:
        presence = presence + functional.binary_cross_entropy_with_logits(
            heads.pooled_presence(pooled), present
        )
    loss = ((by_class + by_attribute) * weight).sum() / total + presence
    right = classes.argmax(-1) == labels.classes
    digit = is_item & (labels.classes >= FIRST_TONE - 10)
    correct = attributes.argmax(-1) == labels.attributes
    return loss, {
        "class_accuracy": float(right[is_item & ~digit].float().mean()),
        "digit_accuracy": float(right[digit].float().mean()),
        "attribute_accuracy": float(correct[is_item].float().mean()),
        "background_accuracy": float(right[~is_item].float().mean()),
        "presence_loss": float(presence.detach()),
    }


def regression_loss(
    projected: torch.Tensor, words: torch.Tensor, oracle: OracleTokens, labels: LabelBatch
) -> torch.Tensor:
    """Weighted squared distance of the projector's tokens to the oracle's, in units of scale."""
    with torch.no_grad():
        target = oracle(words, labels.classes, labels.attributes)
    weight = torch.where(labels.classes < FIRST_TONE, 3.0, 0.5)
    distance = (projected - target).square().mean(-1) / TOKEN_SCALE**2
    return (weight * distance).sum() / weight.sum()


def see(
    model: torch.nn.Module, pixels: torch.Tensor, last_layer: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Penultimate states [batch, 1 + patches, width] and the pooled CLS [batch, width].

    Only the pooled CLS needs the last layer; without ``last_layer`` it is left out and None.
    """
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
    if not last_layer:
        return states, None
    final = tower.encoder.layers[-1](states, attention_mask=None)
    return states, tower.post_layernorm(final[:, 0])
