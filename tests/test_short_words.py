"""What holds tensors prints in a line; what is no tensor is refused by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import pruneopt
from pruneopt.errors import ProblemError, PruneoptError, SignalError
from pruneopt.problems.selection import Selection
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals

TOKENS = torch.randn(3, 200, 8, generator=torch.Generator().manual_seed(0))


def test_a_selection_prints_counts_device_attachments_and_seconds() -> None:
    spec = pruneopt.load_spec("divprune", ["budget.keep=50"])
    selection = pruneopt.select(spec, Signals({"features": TOKENS}))
    words = repr(selection)
    assert words.startswith("Selection(keeps [50, 50, 50] of 200 tokens on cpu; ")
    assert "farthest_point HEURISTIC" in words and re.search(r"\d\.\d ms\)$", words)
    assert "importance" not in words and "merge" not in words
    fastv = pruneopt.select("fastv", {"attention_last": TOKENS.transpose(1, 2).softmax(2)})
    assert "importance" in repr(fastv)
    many = Selection(torch.ones(20, 4, dtype=torch.bool), counts=(4,) * 20)
    assert repr(many) == "Selection(keeps [4, 4, 4, 4, 4, 4, 4, 4, ...] of 4 tokens on cpu)"
    noted = Selection(torch.ones(1, 4, dtype=torch.bool), size=torch.ones(1, 4), diagnostics=("a", "b"))
    assert repr(noted) == "Selection(keeps [4] of 4 tokens on cpu; size; 2 diagnostics)"


def test_no_representation_prints_a_tensor() -> None:
    cost = torch.rand(2, 100, 100)
    transport = pruneopt.solve("sinkhorn", cost)
    subset = pruneopt.select("divprune", Signals({"features": TOKENS})).solution
    signals = Signals({"features": TOKENS}, torch.ones(3, 200, dtype=torch.bool))
    for held in (transport, transport.problem, transport.certificate, subset, subset.problem, signals,
                 signals.view({"features"})):  # fmt: skip
        words = repr(held)
        assert len(words) < 700 and "\n" not in words and "tensor(" not in words, words
        assert re.search(r"(float|bool|int)\d*\[", words), words
    assert "plan=float32[2,100,100]" in repr(transport) and "ended=(ROUNDS_DONE)" in repr(transport)
    assert repr(signals) == "Signals(features float32[3,200,8]; ragged)"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: pruneopt.select("divprune", Signals({"features": x})),
            "signal 'features' must be a torch",
        ),
        (lambda x: pruneopt.select("divprune", {"features": x}), "signal 'features' must be a torch tensor"),
        (lambda x: pruneopt.select("divprune", x), "must be pruneopt.Signals"),
        (lambda x: Signals({"features": TOKENS}, x), "mask must be a torch tensor, got numpy.ndarray"),
        (
            lambda x: pruneopt.select("divprune", {"features": TOKENS}, groups=x),
            "groups must be a torch tensor",
        ),
        (lambda x: pruneopt.solve("sinkhorn", x), "cost must be a torch tensor"),
        (lambda x: pruneopt.solve("sinkhorn", torch.rand(1, 4, 4), a=x), "a must be a torch tensor"),
        (lambda x: TransportProblem.build(torch.rand(1, 4, 4), row_mask=x), "row_mask must be a torch"),
        (lambda x: SubsetProblem.build("top_k", 2, unary=x), "unary must be a torch tensor"),
        (lambda x: SubsetProblem.build("max_min", 2, pairwise=x), "pairwise must be a torch tensor"),
        (lambda x: SubsetProblem.build("top_k", 2, unary=torch.rand(1, 4), mask=x), "mask must be a torch"),
    ],
)
@pytest.mark.parametrize("value", [np.zeros((3, 200, 8), dtype=np.float32), [[1.0, 2.0]], "x"], ids=type)
def test_what_is_no_tensor_is_refused_by_name(call: object, words: str, value: object) -> None:
    with pytest.raises(PruneoptError) as caught:
        call(value)  # type: ignore[operator]
    assert isinstance(caught.value, (SignalError, ProblemError))
    assert words.removesuffix(", got numpy.ndarray") in str(caught.value)
    if isinstance(value, np.ndarray) and "mask must be" in words:
        assert "numpy.ndarray" in str(caught.value)
