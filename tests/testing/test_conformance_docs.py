"""The documentation of the suite and the composition of terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from pruneopt.parts import CostTerm
from pruneopt.parts._nested import NORMALIZATIONS
from pruneopt.parts.costs.cosine_distance import CosineDistance
from pruneopt.parts.costs.feature_sq_l2 import FeatureSquaredL2
from pruneopt.pruner import combine, normalize
from pruneopt.spec.schema import Weighted
from pruneopt.testing import TAGS, cases

DOCS = Path(__file__).parents[2] / "docs" / "conformance.md"


def test_every_tag_is_documented_as_declared():
    text = DOCS.read_text(encoding="utf-8")
    for tag, meaning in TAGS.items():
        assert f"| `{tag}` | {meaning} |" in text


@dataclass(frozen=True)
class Explodes(CostTerm):
    """Raises when it is called."""

    name: ClassVar[str] = "explodes"

    def __call__(self, signals):
        raise AssertionError("a term of weight 0 was called")


@pytest.fixture
def terms():
    """Signals, and two terms with their plain values."""
    one, two = CosineDistance(), FeatureSquaredL2()
    signals = cases.make_signals(one.needs | two.needs, lengths=(12, 7))
    return signals, one, two


def test_weight_zero_removes_a_term_exactly(terms):
    signals, one, _ = terms
    alone = combine([Weighted("a", one)], signals, pairwise=True)
    both = combine([Weighted("a", one), Weighted("b", Explodes(), 0.0)], signals, pairwise=True)
    assert torch.equal(alone, both)


def test_weights_are_linear_and_order_is_irrelevant(terms):
    signals, one, two = terms
    a, b = one(signals.view(one.needs)), two(signals.view(two.needs))
    total = combine([Weighted("a", one, 2.0), Weighted("b", two, 0.5)], signals, pairwise=True)
    turned = combine([Weighted("b", two, 0.5), Weighted("a", one, 2.0)], signals, pairwise=True)
    torch.testing.assert_close(total, 2 * a + 0.5 * b)
    torch.testing.assert_close(total, turned)


@pytest.mark.parametrize("how", [h for h in NORMALIZATIONS if h not in ("none", "softmax")])
def test_normalisation_is_scale_free(terms, how):
    signals, one, _ = terms
    values = one(signals.view(one.needs)) + 0.1
    pair = signals.mask[:, :, None] & signals.mask[:, None, :]
    plain, scaled = (normalize(v, how, mask=signals.mask) for v in (values, 7.0 * values))
    torch.testing.assert_close(plain[pair], scaled[pair])
    assert not torch.allclose(plain[pair], values[pair])
