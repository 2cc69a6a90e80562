"""Public names: each is listed once, resolves, and is what its module says it is."""

from __future__ import annotations

import importlib

import pytest

import pruneopt


def test_the_list_is_the_table() -> None:
    assert list(pruneopt.__all__) == list(pruneopt._PUBLIC)


@pytest.mark.parametrize("name", pruneopt.__all__)
def test_a_public_name_resolves(name: str) -> None:
    found = getattr(pruneopt, name)
    assert found.__name__ == name
    assert found is getattr(importlib.import_module(pruneopt._PUBLIC[name]), name)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pruneopt.nothing  # noqa: B018
