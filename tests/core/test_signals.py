"""Signals are typed by name and guarded by declaration."""

from __future__ import annotations

import pytest
import torch

from pruneopt.errors import SignalError
from pruneopt.signals import SIGNALS, Attention, Signals, attention_need, signal_info


def test_reading_what_is_not_declared_raises_and_reads_are_recorded() -> None:
    signals = Signals({"features": torch.zeros(1, 4, 2), "xy": torch.zeros(1, 4, 2)})
    view = signals.view({"features"})
    assert view["features"].shape == (1, 4, 2)
    assert view.reads == {"features"}
    with pytest.raises(SignalError, match="without declaring"):
        view["xy"]


def test_names_shapes_and_sizes_are_checked() -> None:
    with pytest.raises(SignalError, match="did you mean 'features'"):
        Signals({"featurs": torch.zeros(1, 4, 2)})
    with pytest.raises(SignalError, match=r"\[B,N,D\]"):
        Signals({"features": torch.zeros(4, 2)})
    with pytest.raises(SignalError, match="disagree"):
        Signals({"features": torch.zeros(1, 4, 2), "xy": torch.zeros(1, 5, 2)})
    with pytest.raises(SignalError, match="disagree"):
        Signals({"features": torch.zeros(1, 4, 2)}, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(SignalError, match="not available"):
        Signals({"features": torch.zeros(1, 4, 2)})["keys"]


def test_layers_may_be_named_after_an_at_sign() -> None:
    assert signal_info("keys@5").shape == "[B,H,N,d]"
    assert Signals({"keys@5": torch.zeros(1, 2, 4, 3)}).tokens == 4
    with pytest.raises(SignalError, match="unknown signal"):
        signal_info("kees@5")


def test_token_axes_follow_the_documented_shape() -> None:
    assert signal_info("cls_attention").token_dims == (2,)
    assert signal_info("attention_visual").token_dims == (2, 3)
    assert signal_info("text_features").token_dims == ()
    assert all(info.doc and info.shape.startswith("[B,") for info in SIGNALS.values())


def test_the_need_of_a_set_is_its_most_expensive_member() -> None:
    assert attention_need([]) is Attention.NONE
    assert attention_need(["features", "attention_last"]) is Attention.ROW
    assert attention_need(["features", "attention_last", "encoder_attention"]) is Attention.FULL


def test_bad_values_are_found_per_sample_and_not_in_padding() -> None:
    features = torch.zeros(3, 4, 2)
    features[1, 2, 0] = torch.nan
    features[2, 3, 1] = torch.inf
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 3] = False
    assert Signals({"features": features}).bad_values(["features"]).tolist() == [False, True, True]
    assert Signals({"features": features}, mask).bad_values(["features"]).tolist() == [False, True, False]
