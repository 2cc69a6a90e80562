"""Signals are typed by name and guarded by declaration."""

from __future__ import annotations

import pytest
import torch

from pruneopt.brief import describe
from pruneopt.errors import SignalError
from pruneopt.signals import (
    SIGNALS,
    Attention,
    Place,
    SignalInfo,
    Signals,
    Values,
    attention_need,
    signal_info,
    signals_at,
)
from pruneopt.tensors import across


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
    assert signal_info("cls_attention") == SignalInfo(
        "[B,H,N]", "softmax attention of CLS to each patch, per head", place=Place.ENCODER,
        made_from=("q", "k"), values=Values.SHARES, attention=Attention.ROW,
    )  # fmt: skip
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


def refusal(tensors: dict[str, torch.Tensor], mask: torch.Tensor | None = None) -> str:
    with pytest.raises(SignalError) as caught:
        Signals(tensors, mask)
    return str(caught.value)


def test_a_refusal_names_the_signal_what_it_wants_and_what_it_got() -> None:
    got = refusal({"xy": torch.zeros(1, 4, 2), "keys@3": torch.zeros(1, 4, 2)})
    assert got == "signal 'keys@3' must have shape [B,H,N,d], got [1, 4, 2]"
    got = refusal({"features": torch.zeros(1, 4, 2), "encoder_attention": torch.zeros(1, 1, 4, 5)})
    sizes = {"features (axis 1)": 4, "encoder_attention (axis 2)": 4, "encoder_attention (axis 3)": 5}
    assert got == f"signals disagree on visual tokens N: {sizes}"
    got = refusal({"features": torch.zeros(1, 4, 2)}, torch.ones(1, 5, dtype=torch.bool))
    assert got == "signals disagree on visual tokens N: {'features (axis 1)': 4, 'mask': 5}"
    got = refusal({"features": torch.zeros(1, 4, 2), "text_features": torch.zeros(2, 9, 2)})
    assert got == "signals disagree on batch B: {'features': 1, 'text_features': 2}"
    got = refusal({"features": torch.zeros(1, 4, 2)}, torch.ones(3, 4, dtype=torch.bool))
    assert got == "signals disagree on batch B: {'features': 1, 'mask': 3}"
    assert refusal({"text_features": torch.zeros(1, 9, 2)}) == "no signal with visual tokens was given"
    assert refusal({}) == "no signal with visual tokens was given"
    with pytest.raises(SignalError) as caught:
        signal_info("kees@5")
    assert str(caught.value) == "unknown signal 'kees@5'; did you mean 'keys'?"
    with pytest.raises(SignalError) as caught:
        Signals({"features": torch.zeros(1, 4, 2)})["feature"]
    assert str(caught.value) == "signal 'feature' is not available here; did you mean 'features'?"


def test_a_layer_with_an_at_sign_of_its_own_is_still_found_by_what_stands_first() -> None:
    assert signal_info("keys@5@6") is SIGNALS["keys"]


def test_a_mask_alone_sizes_the_tokens() -> None:
    mask = torch.tensor([[True, False, True]])
    only = Signals({}, mask)
    assert (only.batch, only.tokens, only.ragged, len(only), list(only)) == (1, 3, True, 0, [])
    assert only.mask is mask and only.device == mask.device and only.sample.tolist() == [0]


def test_sizes_mask_and_samples_have_the_defaults_that_are_documented() -> None:
    tensors = {"text_features": torch.zeros(2, 9, 1), "cls_attention": torch.zeros(2, 7, 5)}
    plain = Signals(tensors)
    assert (plain.batch, plain.tokens, plain.ragged, len(plain)) == (2, 5, False, 2)
    assert plain.mask.dtype == torch.bool and plain.mask.shape == (2, 5) and plain.mask.all()
    assert plain.sample.tolist() == [0, 1] and plain.device.type == "cpu"
    assert set(plain) == set(tensors) and "cls_attention" in plain and "xy" not in plain
    tensors.clear()  # what was given may change afterwards
    assert "cls_attention" in plain
    split = Signals({"xy": torch.zeros(2, 3, 2)}, sample=torch.tensor([4, 4]))
    assert split.sample.tolist() == [4, 4] and not split.ragged


def test_masks_samples_and_findings_stay_on_the_device_of_the_signals() -> None:
    """The meta device stands in for a GPU: it has shapes and places, but no values."""
    far = Signals({"xy": torch.zeros(2, 3, 2, device="meta")})
    for tensor in (far.mask, far.sample, far.bad_values(["xy"])):
        assert tensor.device.type == "meta"
    assert far.device.type == "meta" and far.view(["xy"]).device.type == "meta"


def test_a_view_has_the_sizes_of_its_signals_and_only_the_declared_names() -> None:
    mask = torch.tensor([[True, False, True]])
    signals = Signals(
        {"xy": torch.ones(1, 3, 2), "grid": torch.ones(1, 3, 2)}, mask, sample=torch.tensor([7])
    )
    view = signals.view(["xy", "keys"])
    assert (view.batch, view.tokens, view.ragged) == (1, 3, True)
    assert view.mask is mask and view.sample is signals.sample and view.device == signals.device
    assert sorted(view) == ["keys", "xy"] and len(view) == 2
    assert "xy" in view and "grid" not in view and "keys" not in view
    assert view.reads == set() and view["xy"] is signals["xy"]
    with pytest.raises(SignalError) as caught:
        view["grid"]
    assert str(caught.value) == "this part reads signal 'grid' without declaring it; declared: keys, xy"
    with pytest.raises(SignalError, match="signal 'keys' is not available here"):
        view["keys"]
    with pytest.raises(SignalError, match=r"declared: none$"):
        signals.view([])["xy"]


def test_samples_must_be_a_tensor() -> None:
    with pytest.raises(SignalError, match=r"^sample must be a torch tensor, got list"):
        Signals({"xy": torch.zeros(1, 3, 2)}, sample=[0])  # type: ignore[arg-type]


def test_signals_and_views_are_described_by_name_without_values() -> None:
    tensors = {"xy": torch.zeros(1, 3, 2), "grid": torch.zeros(1, 3, 2)}
    shown = f"grid {describe(tensors['grid'])}, xy {describe(tensors['xy'])}"
    plain = Signals(tensors)
    assert repr(plain) == f"Signals({shown})"
    assert repr(Signals(tensors, torch.ones(1, 3).bool())) == f"Signals({shown}; ragged)"
    assert repr(plain.view(["xy", "keys"])) == f"SignalView(of keys, xy in Signals({shown}))"
    assert repr(plain.view([])) == f"SignalView(of nothing in Signals({shown}))"


SHAPES = {"B": 2, "N": 3, "H": 2, "D": 2, "T": 2, "d": 2, "C": 2, "c": 2, "S": 2, "M": 4, "L": 4, "P": 2}
INTEGRAL = (Values.NUMBER, Values.INDEX)
FLOATS = sorted(n for n, info in SIGNALS.items() if info.token_dims and info.values not in INTEGRAL)


@pytest.mark.parametrize("name", FLOATS)
def test_one_bad_entry_is_found_at_every_place_and_only_at_real_tokens(name: str) -> None:
    info = SIGNALS[name]
    axes = [axis.strip() for axis in info.shape.strip("[]").split(",")]
    sizes = [SHAPES.get(axis) or int(axis) for axis in axes]
    assert info.token_dims == tuple(i for i, axis in enumerate(axes) if axis == "N")
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for flat in range(torch.Size(sizes).numel()):
        where = [int(i) for i in torch.unravel_index(torch.tensor(flat), sizes)]
        tensor = torch.zeros(sizes)
        tensor[tuple(where)] = (torch.nan, torch.inf, -torch.inf)[flat % 3]
        real = all(mask[where[0], where[dim]] for dim in info.token_dims)
        hit = [sample == where[0] for sample in range(2)]
        assert Signals({name: tensor}).bad_values([name]).tolist() == hit
        assert Signals({name: tensor}, mask).bad_values([name]).tolist() == [h and real for h in hit]


def test_bad_values_looks_at_all_names_given_and_at_no_other() -> None:
    xy, grid = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    xy[0, 0, 0], grid[1, 2, 1] = torch.nan, -torch.inf
    group = torch.zeros(2, 3, dtype=torch.int64)
    signals = Signals({"group": group, "xy": xy, "grid": grid})
    for names, bad in (
        ([], [False, False]),
        (["group"], [False, False]),
        (["xy"], [True, False]),
        (["grid", "xy"], [True, True]),
        (["group", "grid"], [False, True]),
    ):
        found = signals.bad_values(names)
        assert found.dtype == torch.bool and found.tolist() == bad
    text = torch.zeros(2, 2, 2)
    text[1, 1, 1] = torch.nan  # text has no visual axis: padding of the picture hides nothing
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert Signals({"xy": xy, "text_features": text}, mask).bad_values(["text_features"]).tolist() == [
        False,
        True,
    ]


def test_token_axes_are_those_called_n_in_the_shape() -> None:
    info = SignalInfo("[B,H, N ,d]", "words", place=Place.ENTRY)
    assert info.axes == ("B", "H", "N", "d") and info.token_dims == (2,)
    assert SignalInfo("[N,B,n,M,N]", "x", place=Place.ENTRY).token_dims == (0, 4)


def test_signal_infos_carry_what_the_table_says() -> None:
    assert signal_info("features").attention is Attention.NONE
    assert signal_info("cls_attention").attention is Attention.ROW
    assert signal_info("attention_logits").attention is Attention.FULL
    assert signal_info("attention_logits").token_dims == ()
    plain = SignalInfo("[B,N]", "x", place=Place.ENTRY)
    assert (plain.made_from, plain.values, plain.attention) == ((), Values.REAL, Attention.NONE)
    row = SignalInfo(
        "[B,H,N]",
        "attention of the last prompt token",
        place=Place.DECODER,
        made_from=("q", "k"),
        values=Values.SHARES,
        attention=Attention.ROW,
    )
    assert SIGNALS["attention_last"] == row
    assert {name for name, info in SIGNALS.items() if not info.made_from} == {
        "importance", "clip_features", "clip_text",
    }  # fmt: skip


def test_signals_of_a_place_are_the_rows_that_say_so() -> None:
    assert signals_at() == frozenset() and signals_at(*Place) == frozenset(SIGNALS)
    assert signals_at(Place.CROP) == {"cls_query", "cls_key", "cls_feature"}
    both = signals_at(Place.CROP, Place.GEOMETRY)
    assert {"cls_query", "xy", "importance", "visual_index"} < both and "keys" not in both
    assert sum(len(signals_at(place)) for place in Place) == len(SIGNALS)


def test_who_has_shares_of_attention_pays_for_attention() -> None:
    """Its price is a row or a map, and a map is what runs over tokens twice."""
    for name, info in SIGNALS.items():
        paid = info.values in (Values.SHARES, Values.LOGITS)
        assert (info.attention is not Attention.NONE) is paid, name
        whole = info.axes[2:] in (("N", "N"), ("L", "L"))
        assert (info.attention is Attention.FULL) is whole, name


def test_a_mask_goes_across_any_axes() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert across(mask, (), rank=3).tolist() == [[[True]]]
    assert across(mask, (2,), rank=3).tolist() == [[[True, False]], [[True, True]]]
    both = across(mask, (1, 3), rank=4)
    assert both.shape == (2, 2, 1, 2) and both.dtype == torch.bool
    assert both[:, :, 0].tolist() == [[[True, False], [False, False]], [[True, True], [True, True]]]
    assert across(torch.ones(1, 2, dtype=torch.bool, device="meta"), (), rank=2).device.type == "meta"
