"""Helpers of all parts, against the same thing written with lists."""

from __future__ import annotations

import pytest
import torch

from pruneopt.tensors import (
    across,
    cosine_gram,
    first_true,
    flat_heads,
    gram,
    not_finite,
    places,
    range_per_sample,
    take_rows,
    unit_rows,
)


def test_rows_are_taken_by_index_sample_by_sample() -> None:
    rows = torch.arange(2 * 4 * 3).view(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    wanted = [[rows[b, n].tolist() for n in index[b].tolist()] for b in range(2)]
    assert take_rows(rows, index).tolist() == wanted


def test_a_place_is_the_number_of_real_tokens_before() -> None:
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    found = places(mask)
    assert [found[b, n].item() for b, n in mask.nonzero().tolist()] == [0, 1, 2, 0, 1]
    assert found.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_unit_rows_have_length_one_in_the_finer_type(dtype: torch.dtype) -> None:
    found = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [5e-7, 0.0]], dtype=dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], dtype=found.dtype)
    torch.testing.assert_close(found, wanted)


def test_heads_of_a_token_stand_side_by_side() -> None:
    heads = torch.arange(2 * 2 * 3 * 4).view(2, 2, 3, 4)  # two heads of three tokens, four numbers each
    wanted = [[[*heads[b, 0, n].tolist(), *heads[b, 1, n].tolist()] for n in range(3)] for b in range(2)]
    assert flat_heads(heads).tolist() == wanted


@pytest.mark.parametrize("padding", [-9.0, 0.0, 9.0])
def test_a_range_is_over_all_problems_of_a_sample_and_without_padding(padding: float) -> None:
    """Groups of sample 0 stand first, third and last; sample 2 has one group."""
    values = torch.tensor([[1.1, 2.0], [5.0, 6.0], [-3.3, 0.5], [7.7, 4.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    sample = torch.tensor([0, 2, 0, 0])
    least, most = range_per_sample(values.masked_fill(~mask, padding), mask, sample=sample)
    real = [
        [v for v, m in zip(*pair, strict=True) if m]
        for pair in zip(values.tolist(), mask.tolist(), strict=True)
    ]
    alike = [
        [v for row, t in zip(real, sample.tolist(), strict=True) for v in row if t == s]
        for s in sample.tolist()
    ]
    assert least.tolist() == [min(row) for row in alike]
    assert most.tolist() == [max(row) for row in alike]
    assert least.dtype == values.dtype


@pytest.mark.parametrize("tokens", [5, 255, 256, 258])
def test_a_gram_matrix_is_the_product_and_exactly_symmetric(tokens: int) -> None:
    rows = torch.randn(2, tokens, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))
    found = gram(rows)
    assert found.equal(found.transpose(1, 2))
    torch.testing.assert_close(found, torch.einsum("bnd,bmd->bnm", rows, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", ["joined", "mean"])
def test_cosines_of_heads_are_those_of_all_numbers_or_of_their_mean(heads: str) -> None:
    rows = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    flat = torch.cat([rows[:, h] for h in range(3)], 2) if heads == "joined" else sum(rows.unbind(1)) / 3
    wanted = torch.nn.functional.cosine_similarity(flat[:, :, None], flat[:, None], dim=3)
    wanted = wanted * mask[:, :, None] * mask[:, None]  # padding is like nothing
    torch.testing.assert_close(cosine_gram(rows, mask, heads=heads), wanted)
    torch.testing.assert_close(cosine_gram(flat, mask, heads=heads), wanted)


def test_the_first_true_is_the_lowest_index() -> None:
    assert first_true(torch.tensor([False, False, True, True])) == 2


def test_a_mask_across_axes_is_true_where_it_is_along_each() -> None:
    mask = torch.tensor([[True, False, True]])
    pairs = [[a and b for b in mask[0].tolist()] for a in mask[0].tolist()]
    assert across(mask, (1, 2), rank=3).tolist() == [pairs]
    assert across(mask, (2,), rank=3).tolist() == [mask.tolist()]
    assert across(mask, (), rank=3).tolist() == [[[True]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_told_by_sample(dtype: torch.dtype, bad: float) -> None:
    values = torch.randn(3, 5, 2).to(dtype)
    assert not_finite(values).tolist() == [False] * 3
    values[1, 4, 0] = bad
    assert not_finite(values).tolist() == [False, True, False]
    real = torch.ones(3, 5, 1, dtype=torch.bool)
    real[1, 4] = False
    assert not_finite(values, real).tolist() == [False] * 3


def test_the_ends_of_a_dtype_and_nothing_at_all_are_finite() -> None:
    ends = torch.tensor([[torch.finfo(torch.float32).min, torch.finfo(torch.float32).max]])
    assert not_finite(ends).tolist() == not_finite(ends[:, :0]).tolist() == [False]
    assert not_finite(torch.ones(2, 3, dtype=torch.int64)).tolist() == [False, False]
