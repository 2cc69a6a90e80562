"""Which columns of a prompt may be pruned, read without any model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pruneopt.errors import InputError
from pruneopt.models import prompt as prompt_module
from pruneopt.models.base import Picture
from pruneopt.models.prompt import Prompt, read_prompt, refuse_without_text

I = 7  # noqa: E741 an image token


class Reader:
    """Stands for an adapter: image tokens are sevens, their pictures are given."""

    def __init__(self, *pictures: Picture):
        self._pictures = list(pictures)

    def stream(self, inputs: dict[str, Any]) -> Tensor:
        return (inputs["input_ids"] == I).long()

    def pictures(self, inputs: dict[str, Any]) -> tuple[list[Picture], list[Picture]]:
        return self._pictures, []


def read(rows: list[list[int]], *pictures: Picture, mask: list[list[int]] | None = None) -> Prompt:
    inputs = {"input_ids": torch.tensor(rows), "pixel_values": torch.zeros(1)}
    if mask is not None:
        inputs["attention_mask"] = torch.tensor(mask)
    reader: Any = Reader(*pictures)
    return read_prompt(reader, inputs)


def free(prompt: Prompt) -> list[list[int]]:
    return [row.nonzero().squeeze(1).tolist() for row in prompt.free]


def test_the_last_real_column_always_stays() -> None:
    """A picture at the end of a row, without padding, with left and with right padding; text behind one."""
    rows = [[1, 2, I, I, I, I], [0, 1, I, I, I, I], [1, I, I, I, I, 0], [1, I, I, I, I, 2]]
    mask = [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    prompt = read(rows, *[Picture.plain(2, 2)] * 4, mask=mask)
    assert free(prompt) == [[2, 3, 4], [2, 3, 4], [1, 2, 3], [1, 2, 3, 4]]
    assert prompt.started == [3, 3, 3, 4] and prompt.last.tolist() == [5, 5, 4, 5]
    assert prompt.lengths == [6, 5, 5, 6] and prompt.real.tolist() == torch.tensor(mask).bool().tolist()
    assert prompt.geometry["xy"][0].tolist()[:3] == [[0, 0], [1, 0], [0, 1]]
    assert prompt.place[0].tolist() == [2, 3, 4, -1]


def test_a_prompt_of_which_only_the_last_column_is_visual() -> None:
    with pytest.raises(InputError, match="last token of the prompt"):
        read([[1, I]], Picture.plain(1, 1))


def test_masked_image_tokens_are_padding() -> None:
    """Hidden in the middle, a whole picture hidden, and all of the first: never free, never counted."""
    rows = [[1, I, I, I, I, 2, 3, 4], [1, I, I, I, I, 2, 3, 4], [I, I, I, I, I, I, I, I]]
    mask = [[1, 1, 0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]
    prompt = read(rows, *[Picture.plain(2, 2)] * 4, mask=mask)
    assert prompt.rows == [0, 2]
    assert free(prompt) == [[1, 4], [], [4, 5, 6]]
    assert prompt.started == [2, 3] and prompt.lengths == [6, 4, 4]
    assert prompt.leading == [0, 0, 4] and prompt.inner == [2, 4, 0]
    assert prompt.groups == 1 and prompt.geometry["group"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert prompt.source.tolist() == [[0, 3, 0], [12, 13, 14]]
    assert prompt.geometry["xy"][0, :2].tolist() == [[0, 0], [1, 1]]
    assert prompt.text[0].tolist() == [5, 6, 7]


def test_text_begins_after_the_first_token_that_is_seen() -> None:
    prompt = read([[I, 2, I, 4, 5]], Picture.plain(1, 1), Picture.plain(1, 1), mask=[[0, 1, 1, 1, 1]])
    assert prompt.text.tolist() == [[3, 4]] and free(prompt) == [[2]]


def test_groups_are_counted_in_the_order_of_the_prompt() -> None:
    """Crops whose own numbers come as 2, 0, 1, interleaved with separators; then a second picture."""
    odd = replace(
        Picture.plain(3, 2),
        crop=torch.tensor([2, 2, 0, 1, 1, 0]),
        free=torch.tensor([True, True, True, False, True, True]),
    )
    prompt = read([[1, *[I] * 6, 2, I, I, 3]], odd, Picture.plain(2, 1))
    assert prompt.geometry["group"].tolist() == [[0, 0, 1, 2, 1, 3, 3]]
    assert prompt.groups == 4
    assert free(prompt) == [[1, 2, 3, 5, 6, 8, 9]]


def test_text_that_is_not_there_is_named() -> None:
    prompt = read([[1, I, I, 2], [1, 2, I, I]], *[Picture.plain(2, 1)] * 2)
    refuse_without_text(prompt, {"features", "keys@1", "attention_last"})
    with pytest.raises(
        InputError, match=r"sample 1 has no text after its picture, which text_mask is made of"
    ):
        refuse_without_text(prompt, {"features", "text_mask"})
    with pytest.raises(InputError, match=r"sample 0 .* attention_text@3, text_keys"):
        refuse_without_text(read([[1, I, I]], Picture.plain(2, 1)), {"text_keys", "attention_text@3"})


def hidden_may_go(real: Any) -> Any:
    return lambda may_go, owner, **more: real(may_go | (owner == 2) | (owner == 3), owner, **more)


def last_may_go(real: Any) -> Any:
    return lambda may_go, owner, **more: real(may_go | may_go.roll(1, 1), owner, **more)


def groups_by_their_own_number(real: Any) -> Any:
    def free(may_go: Tensor, owner: Tensor, *, pictures: list[Picture]) -> Any:
        free, _, counts = real(may_go, owner, pictures=pictures)
        crop = torch.cat([p.crop for p in pictures])
        return free, torch.where(free, crop[owner.clamp_min(0)], 0), counts

    return free


CATCHES = {
    hidden_may_go: (test_masked_image_tokens_are_padding,),
    last_may_go: (test_the_last_real_column_always_stays,),
    groups_by_their_own_number: (test_groups_are_counted_in_the_order_of_the_prompt,),
}


@pytest.mark.parametrize("bug", list(CATCHES), ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(bug: Any) -> None:
    with mock.patch.object(prompt_module, "_free", bug(prompt_module._free)):
        for test in CATCHES[bug]:
            with pytest.raises(AssertionError):
                test()
